"""Run profile: calibration, loss by position, hard tokens and memorised samples."""

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
    confidence = rng.uniform(0, 1, 200_000)
    correct = rng.uniform(0, 1, 200_000) < confidence
    assert calibration(confidence, correct).error < 0.01


def test_calibration_bins():
    result = calibration(np.array([0.05, 0.95, 1.0, 0.92]), np.array([1.0, 1.0, 0.0, 1.0]))
    assert result.share[0] == 0.25
    assert result.share[9] == 0.75
    assert result.confidence[9] == pytest.approx((0.95 + 1.0 + 0.92) / 3)
    assert result.accuracy[9] == pytest.approx(2 / 3)
    expected = 0.25 * 0.95 + 0.75 * ((0.95 + 1.0 + 0.92) / 3 - 2 / 3)
    assert result.error == pytest.approx(expected)


def test_hard_tokens_have_the_highest_mean_loss():
    tokenizer = CharTokenizer("abc")
    split = encode_documents("val", [["a" * 50 + "b" * 20 + "c" * 2]], "text", tokenizer)
    nats = np.concatenate([np.full(50, 0.1), np.full(20, 3.0), np.full(2, 99.0)])
    hardest = hard_tokens(split, tokenizer, nats)
    assert [token.text for token in hardest] == ["b", "a"]  # c is too rare
    assert hardest[0].bits == pytest.approx(3 / math.log(2))
    assert (hardest[0].times, hardest[1].times) == (20, 50)
    assert hardest[0].share == pytest.approx(60 / nats.sum())


def test_curves_are_in_bits_per_byte():
    record = {"elapsed": 3.0, "tokens": 500, "val": math.log(2)}
    assert curve_point(record, 0.25) == (3.0, 500, pytest.approx(0.25))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profile")
    (folder / "lines.txt").write_text("bada\nkilo\nmani\n" * 400, encoding="utf-8")
    (folder / "text.txt").write_text("the cat sat on the mat. the dog ate the hat. " * 300, encoding="utf-8")
    for name in ("lines", "text"):
        for model in ("count", "transformer"):
            settings = ("model.n_layer=1", "model.n_embd=16") if model == "transformer" else ()
            corpus = {"mode": name}
            budget = {"steps": 5, "compile": "no"}
            out = folder / f"{name}-{model}"
            train(
                TrainRequest(
                    input=str(folder / f"{name}.txt"),
                    model=model,
                    tokenizer="char",
                    out=out,
                    train=budget,
                    corpus=corpus,
                    settings=settings,
                )
            )
    return folder


@pytest.mark.parametrize("model", ["count", "transformer"])
def test_loss_by_position_in_the_line(folder, model):
    run = load(folder / f"lines-{model}")
    split = get_split(run, None, "val")
    positions = profile_run(run, split).positions
    nats = token_nats(run.model, split).reshape(-1, 5)
    assert [position for position, _ in positions] == [0, 1, 2, 3, 4]
    np.testing.assert_allclose([bits for _, bits in positions], nats.mean(axis=0) / math.log(2), rtol=1e-4)


def test_loss_by_context_length(folder, monkeypatch):
    monkeypatch.setattr("makemore.evaluation.profile.MIN_BYTES", 1)
    monkeypatch.setattr("makemore.evaluation.profile.CONTEXT", 8)
    run = load(folder / "text-transformer")
    split = get_split(run, None, "val")
    positions = profile_run(run, split).positions
    assert [position for position, _ in positions] == [1, 2, 4, 8]
    from makemore.corpus.rows import eval_windows

    nats = row_nats(run.model, split, eval_windows(split, 8, 0))
    first = nats[::8].mean() / math.log(2)
    assert positions[0][1] == pytest.approx(first, rel=1e-5)


def test_profile_is_complete(folder):
    for name in ("lines-count", "text-count", "lines-transformer", "text-transformer"):
        run = load(folder / name)
        profile = profile_run(run, get_split(run, None, "val"))
        assert sum(profile.calibration.share) == pytest.approx(1)
        assert profile.hard
        assert profile.curve


def test_curve_uses_the_val_split_of_the_run(folder, tmp_path, monkeypatch):
    """The bytes per token are those of the training run's val split, whichever text is profiled."""
    (tmp_path / "other.txt").write_text("bad\u00e4\n" * 400, encoding="utf-8")
    run = load(folder / "lines-count")
    curve = profile_run(run, get_split(run, None, "val")).curve
    assert curve == profile_run(run, get_split(run, tmp_path / "other.txt", "val")).curve
    monkeypatch.setattr(RunDir, "read_result", lambda self: None)
    assert profile_run(run, get_split(run, None, "val")).curve == []


def test_memorised_share_of_samples(folder):
    lines, text = load(folder / "lines-count"), load(folder / "text-count")
    memorization = Memorization()
    memorization.add(lines, ["bada", "kilo", "nada", "bad"])
    memorization.add(text, ["the cat sat on the mat. ", "zzzz the cat zzzz"])
    memorization.add(lines, ["nothing"])
    shares = memorization.shares()
    assert shares[0] == 0.5
    assert shares[1] == pytest.approx((24 + len(" the cat ")) / (24 + 17))
    assert shares[2] == 0.0


def test_memorised_share_is_unknown_without_the_text(folder, tmp_path):
    path = tmp_path / "gone.txt"
    path.write_text("bada\nkilo\nmani\n" * 20, encoding="utf-8")
    run = train(
        TrainRequest(input=str(path), model="count", out=tmp_path / "run", corpus={"mode": "lines"})
    ).run
    path.unlink()
    memorization = Memorization()
    memorization.add(run, ["bada"])
    assert memorization.shares() == [None]


def test_fixed_samples_are_deterministic(folder):
    run = load(folder / "lines-count")
    assert fixed_samples(run) == fixed_samples(run)
    assert len(fixed_samples(run)) == 500
    assert sampling_speed(run) > 0
