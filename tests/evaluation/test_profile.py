"""What a run is like: calibration, position, hard tokens, and what it writes by heart."""

from __future__ import annotations

import math

import numpy as np
import pytest

from makemore.comparison.samples import Memorization, fixed_samples, sampling_speed
from makemore.corpus.splits import encode_documents
from makemore.evaluation.evaluate import get_split
from makemore.evaluation.profile import calibration, curve_point, hard_tokens, profile_run
from makemore.evaluation.scoring import row_nats, token_nats
from makemore.runs.directory import RunDir
from makemore.runs.run import load
from makemore.tokenizers.char import CharTokenizer
from makemore.training.request import TrainRequest
from makemore.training.train import train


def test_a_calibrated_model_has_no_calibration_error():
    rng = np.random.default_rng(0)
    said = rng.uniform(0, 1, 200_000)
    came = rng.uniform(0, 1, 200_000) < said
    assert calibration(said, came).error < 0.01


def test_calibration_counts_bins_by_hand():
    found = calibration(np.array([0.05, 0.95, 1.0, 0.92]), np.array([1.0, 1.0, 0.0, 1.0]))
    assert found.share[0] == 0.25
    assert found.share[9] == 0.75
    assert found.confidence[9] == pytest.approx((0.95 + 1.0 + 0.92) / 3)
    assert found.accuracy[9] == pytest.approx(2 / 3)
    expected = 0.25 * 0.95 + 0.75 * ((0.95 + 1.0 + 0.92) / 3 - 2 / 3)
    assert found.error == pytest.approx(expected)


def test_hard_tokens_are_those_that_cost_most_a_time():
    tokenizer = CharTokenizer("abc")
    split = encode_documents("val", [["a" * 50 + "b" * 20 + "c" * 2]], "text", tokenizer)
    nats = np.concatenate([np.full(50, 0.1), np.full(20, 3.0), np.full(2, 99.0)])
    found = hard_tokens(split, tokenizer, nats)
    assert [token.text for token in found] == ["b", "a"]  # c comes too seldom to tell
    assert found[0].bits == pytest.approx(3 / math.log(2))
    assert (found[0].times, found[1].times) == (20, 50)
    assert found[0].share == pytest.approx(60 / nats.sum())


def test_curves_are_in_bits_per_byte():
    record = {"elapsed": 3.0, "tokens": 500, "val": math.log(2)}
    assert curve_point(record, 0.25) == (3.0, 500, pytest.approx(0.25))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("portrait")
    (folder / "lines.txt").write_text("bada\nkilo\nmani\n" * 400, encoding="utf-8")
    (folder / "text.txt").write_text("the cat sat on the mat. the dog ate the hat. " * 300, encoding="utf-8")
    for name in ("lines", "text"):
        for model in ("count", "transformer"):
            settings = ("model.n_layer=1", "model.n_embd=16") if model == "transformer" else ()
            corpus = {"mode": name}
            asked = {"steps": 5, "compile": "no"}
            out = folder / f"{name}-{model}"
            train(TrainRequest(str(folder / f"{name}.txt"), model, "char", out, asked, corpus, settings))
    return folder


@pytest.mark.parametrize("model", ["count", "transformer"])
def test_by_place_in_the_line(folder, model):
    run = load(folder / f"lines-{model}")
    split = get_split(run, None, "val")
    found = profile_run(run, split).positions
    nats = token_nats(run.model, split).reshape(-1, 5)
    assert [place for place, _ in found] == [0, 1, 2, 3, 4]
    np.testing.assert_allclose([bits for _, bits in found], nats.mean(axis=0) / math.log(2), rtol=1e-4)


def test_by_tokens_of_context(folder, monkeypatch):
    monkeypatch.setattr("makemore.evaluation.profile.MIN_BYTES", 1)
    monkeypatch.setattr("makemore.evaluation.profile.CONTEXT", 8)
    run = load(folder / "text-transformer")
    split = get_split(run, None, "val")
    found = profile_run(run, split).positions
    assert [place for place, _ in found] == [1, 2, 4, 8]
    from makemore.corpus.rows import eval_windows

    nats = row_nats(run.model, split, eval_windows(split, 8, 0))
    first = nats[::8].mean() / math.log(2)
    assert found[0][1] == pytest.approx(first, rel=1e-5)


def test_figures_are_whole(folder):
    for name in ("lines-count", "text-count", "lines-transformer", "text-transformer"):
        run = load(folder / name)
        found = profile_run(run, get_split(run, None, "val"))
        assert sum(found.calibration.share) == pytest.approx(1)
        assert found.hard
        assert found.curve


def test_the_curve_is_of_the_runs_own_val(folder, tmp_path, monkeypatch):
    """Whatever text is looked at: bytes a token are those of the text that it was judged on in training."""
    (tmp_path / "other.txt").write_text("bad\u00e4\n" * 400, encoding="utf-8")
    run = load(folder / "lines-count")
    own = profile_run(run, get_split(run, None, "val")).curve
    assert own == profile_run(run, get_split(run, tmp_path / "other.txt", "val")).curve
    monkeypatch.setattr(RunDir, "read_result", lambda self: None)
    assert profile_run(run, get_split(run, None, "val")).curve == []


def test_what_is_written_by_heart(folder):
    lines, text = load(folder / "lines-count"), load(folder / "text-count")
    by_heart = Memorization()
    by_heart.add(lines, ["bada", "kilo", "nada", "bad"])
    by_heart.add(text, ["the cat sat on the mat. ", "zzzz the cat zzzz"])
    by_heart.add(lines, ["nothing"])
    shares = by_heart.shares()
    assert shares[0] == 0.5
    assert shares[1] == pytest.approx((24 + len(" the cat ")) / (24 + 17))
    assert shares[2] == 0.0


def test_without_its_text_nobody_can_tell(folder, tmp_path):
    path = tmp_path / "gone.txt"
    path.write_text("bada\nkilo\nmani\n" * 20, encoding="utf-8")
    run = train(TrainRequest(str(path), "count", out=tmp_path / "run", corpus={"mode": "lines"})).run
    path.unlink()
    by_heart = Memorization()
    by_heart.add(run, ["bada"])
    assert by_heart.shares() == [None]


def test_specimens_are_the_same_every_time(folder):
    run = load(folder / "lines-count")
    assert fixed_samples(run) == fixed_samples(run)
    assert len(fixed_samples(run)) == 500
    assert sampling_speed(run) > 0
