"""The play page's predictions, against the model's forward pass."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from makemore.evaluation.adaptive import prompt_split
from makemore.evaluation.evaluate import adaptive_reader
from makemore.play import lookahead as playing
from makemore.play.lookahead import Predictions, predict
from makemore.runs.run import Run, load
from makemore.sampling import SampleParams, distribution
from makemore.training.request import TrainRequest
from makemore.training.train import train
from tests.cli.conftest import prose, words


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "words.txt").write_text(words(), encoding="utf-8")
    (folder / "prose.txt").write_text(prose(), encoding="utf-8")
    settings = {"steps": 20, "eval_interval": 10}

    def train_run(text: str, model: str, tokenizer: str = "char") -> Run:
        out = folder / f"{model}-{tokenizer[:3]}-{text[:5]}"
        return load(
            train(
                TrainRequest(
                    input=str(folder / text), model=model, tokenizer=tokenizer, out=out, train=settings
                )
            ).run.folder.path,
            "cpu",
        )

    return {
        "lines": train_run("words.txt", "gru"),
        "text": train_run("prose.txt", "mlp"),
        "pieces": train_run("prose.txt", "mlp", "bpe:270"),
        "bytes": train_run("prose.txt", "mlp", "byte"),
        "count": train_run("prose.txt", "count"),
    }


def forward(run: Run, ids: list[int]) -> np.ndarray:
    """Next-token probabilities (T, V), float64, after each token."""
    with torch.no_grad():
        return run.model(torch.tensor([ids]))[0][0].double().softmax(-1).numpy()


def assert_equal_candidates(a: Predictions, b: Predictions) -> None:
    assert [c.text for c in a.candidates] == [c.text for c in b.candidates]
    assert [c.p for c in a.candidates] == pytest.approx([c.p for c in b.candidates], rel=1e-5)


def test_line_predictions_match_forward(runs: dict[str, Run]) -> None:
    run = runs["lines"]
    ids = run.tokenizer.encode("bad").tolist()
    p_TV = forward(run, [0, *ids])
    shown = predict(run, "bad")
    assert [token.text for token in shown.tokens] == list("bad")
    assert [token.p for token in shown.tokens] == pytest.approx(
        [p_TV[i, t] for i, t in enumerate(ids)], rel=1e-4
    )
    assert shown.at == 3
    assert shown.earlier == ""
    by_text = {"the end" if c.ends else c.text: c.p for c in shown.candidates}
    assert len(by_text) == run.tokenizer.vocab_size
    assert by_text["the end"] == pytest.approx(p_TV[3, 0], rel=1e-4)
    assert by_text["a"] == pytest.approx(p_TV[3, run.tokenizer.encode("a")[0]], rel=1e-4)
    assert [c.p for c in shown.candidates] == sorted((c.p for c in shown.candidates), reverse=True)
    assert shown.entropy == pytest.approx(-sum(p * math.log2(p) for p in p_TV[3]), rel=1e-4)


def test_predictions_within_the_text(runs: dict[str, Run]) -> None:
    run = runs["lines"]
    for at, prefix in ((0, ""), (2, "ba"), (3, "bad")):
        assert_equal_candidates(predict(run, "bad", at=at), predict(run, prefix))
    assert predict(run, "bad", at=99).at == 3
    assert predict(run, "first\nbad") == predict(run, "bad")


def test_sampling_settings_change_the_probabilities(runs: dict[str, Run]) -> None:
    run, params = runs["lines"], SampleParams(0.7, top_k=4)
    p_V = forward(run, [0, *run.tokenizer.encode("b").tolist()])[1]
    expected = np.sort(distribution(np.log(p_V)[None], params)[0])[::-1]
    shown = predict(run, "b", params)
    assert [c.sampling_p for c in shown.candidates] == pytest.approx(expected.tolist(), abs=1e-5)
    assert sum(c.sampling_p > 0 for c in shown.candidates) == 4


@pytest.mark.parametrize("name", ["text", "pieces"])
def test_running_text_predictions_match_forward(runs: dict[str, Run], name: str) -> None:
    run = runs[name]
    text = prose()[40:75]
    ids = run.tokenizer.encode(text).tolist()
    p_TV = forward(run, ids)
    shown = predict(run, text)
    assert "".join(token.text for token in shown.tokens) == text
    assert shown.tokens[0].p is None
    # A forward pass pads a short context with boundaries, and so does generation from a prompt.
    expected = [p_TV[i - 1, t] for i, t in enumerate(ids) if i]
    assert [token.p for token in shown.tokens[1:]] == pytest.approx(expected, rel=1e-4)
    assert predict(run, text, at=0).at == 1
    assert not any(c.ends for c in shown.candidates)


@pytest.mark.parametrize("name", ["text", "count"])
def test_adaptive_predictions_match_the_adaptive_score(runs: dict[str, Run], name: str) -> None:
    run, typed = runs[name], "salt" * 30
    reader = adaptive_reader(run)
    seen = predict(run, typed, reader=reader)
    split = prompt_split(run.tokenizer.encode(typed).astype(np.int64), 0)
    p_N = np.exp(-reader.read(split).nats_N)
    scored = [token.p for token in seen.tokens if token.p is not None]
    assert scored == pytest.approx(p_N[len(p_N) - len(scored) :])
    assert scored != pytest.approx([t.p for t in predict(run, typed).tokens if t.p is not None])
    assert predict(run, "", reader=reader).tokens == []


def test_adaptive_candidates_follow_what_was_learned_before_them(runs: dict[str, Run]) -> None:
    seen = predict(runs["count"], "salt" * 30, at=64, reader=adaptive_reader(runs["count"]))
    assert seen.before == "salt" * 16
    assert next(c.p for c in seen.candidates if c.text == "s") == pytest.approx(seen.tokens[64].p)


def test_empty_text_continues_the_training_text(runs: dict[str, Run]) -> None:
    shown = predict(runs["text"], "")
    assert (shown.tokens, shown.earlier, shown.at) == ([], "", 0)
    context = runs["text"].config.text.context
    assert_equal_candidates(shown, predict(runs["text"], context))


def test_only_the_end_of_a_long_text_is_scored(runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    full = predict(runs["text"], prose()[:100])
    monkeypatch.setattr(playing, "MAX_SCORED_TOKENS", 30)
    shown = predict(runs["text"], prose()[:100])
    assert len(shown.tokens) == 30
    assert shown.earlier + "".join(token.text for token in shown.tokens) == prose()[:100]
    assert [t.p for t in shown.tokens] == pytest.approx([t.p for t in full.tokens[-30:]], rel=1e-5)
    assert [c.text for c in shown.candidates[:5]] == [c.text for c in full.candidates[:5]]
    assert predict(runs["text"], prose()[:100], at=0).at == 0


def test_characters_of_several_tokens_are_not_split(
    runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, text = runs["bytes"], "café 日 \ufffd!"
    assert predict(run, text).before == text
    assert predict(run, text, at=5).before == "café"
    assert predict(run, text, at=4).before == "caf"
    assert predict(runs["text"], "").before == predict(runs["lines"], "").before == ""
    monkeypatch.setattr(playing, "MAX_SCORED_TOKENS", 5)
    assert predict(run, text).before == text


def test_unknown_characters_are_left_out(runs: dict[str, Run]) -> None:
    shown = predict(runs["lines"], "bé日d")
    assert shown.left_out == "é日"
    assert shown.candidates == predict(runs["lines"], "bd").candidates
    assert predict(runs["text"], "日").candidates == predict(runs["text"], "").candidates
