"""The learning-rate range test: rates tried, suggestion, stopping, plot."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from makemore.errors import UserError
from makemore.training.learners.autograd import AutogradLearner
from makemore.training.learners.base import Metrics
from makemore.training.lr_find import Point, Sweep, SweepRequest, find_lr
from makemore.training.request import TrainRequest

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rng = random.Random(7)
    lines = ["".join(rng.choice("bdkl") + v for v in rng.sample("aeiou", 3)) for _ in range(300)]
    path = tmp_path / "words.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def sweep(path: Path, model: str = "mlp", *settings: str, **request: Any) -> Sweep:
    training = TrainRequest(input=str(path), model=model, settings=("train.dtype=float32", *settings))
    return find_lr(SweepRequest(training=training, **{"steps": 40, **request}))


def make_sweep(smooth: list[float]) -> Sweep:
    """A sweep with these losses at learning rates 1e-6, 1e-5, ..."""
    points = [Point(10.0 ** (i - 6), loss, loss) for i, loss in enumerate(smooth)]
    return Sweep(
        model="mlp", optimizer="muon", muon_lr_ratio=4.0, points=points, diverged=False, picture=Path("x.png")
    )


def test_rates_are_a_geometric_series_from_low_to_high(words: Path) -> None:
    rates = [p.lr for p in sweep(words, low=1e-6, high=1e-4, steps=21).points]
    assert rates == pytest.approx([1e-6 * 10 ** (i / 10) for i in range(21)])


def test_each_step_uses_its_learning_rate(words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step_lrs = []
    step = AutogradLearner.step

    def recorded_step(self: AutogradLearner, *arguments: Any) -> Metrics:
        metrics = step(self, *arguments)
        step_lrs.append([g["lr"] for part in self.optimizers.parts for g in part.param_groups])
        return metrics

    monkeypatch.setattr(AutogradLearner, "step", recorded_step)
    settings = ("train.optimizer=muon", "train.lr=0.01", "train.matrix_lr=0.03")
    result = sweep(words, "mlp", *settings, steps=12)
    assert result.points[0].lr == pytest.approx(0.01 / 1000)  # the range starts at the recipe's rate / 1000
    for point, rates in zip(result.points, step_lrs, strict=False):
        assert {round(rate / point.lr, 6) for rate in rates} == {1.0, 3.0}
    assert result.matrix_lr == pytest.approx(3 * result.lr)


def test_smoothed_losses_are_bias_corrected(words: Path) -> None:
    points = sweep(words).points
    losses = [p.loss for p in points]
    for i, point in enumerate(points):
        weights = [0.9 ** (i - k) for k in range(i + 1)]
        expected = sum(w * x for w, x in zip(weights, losses, strict=False)) / sum(weights)
        assert point.smooth == pytest.approx(expected)


def test_sweep_suggests_a_usable_rate_and_stops_at_divergence(words: Path) -> None:
    result = sweep(words, "mlp", "train.optimizer=sgd", "train.clip=0", low=1e-3, high=1e5, steps=80)
    assert result.diverged
    assert result.caveat == ""
    assert result.points[-1].lr < 1e5
    assert all(math.isfinite(p.loss) for p in result.points)
    assert result.steepest.lr <= result.lowest.lr
    assert result.lowest.smooth < 0.9 * result.points[0].loss
    assert 0.01 < result.lr < 10


def test_the_suggestion_is_a_tenth_of_the_lowest_loss_rate() -> None:
    result = make_sweep([4.0, 3.9, 3.0, 2.8, 2.7, 4.2])
    assert (result.lr, result.lowest.lr, result.steepest.lr) == pytest.approx((1e-3, 1e-2, 1e-4), rel=1e-9)
    assert result.settings() == {"train.lr": "0.001", "train.matrix_lr": "0.004"}


@pytest.mark.parametrize(
    ("smooth", "caveat"),
    [([4.0, 3.0, 2.0], "--to"), ([4.0, 3.99, 4.1], "--from"), ([4.0, 4.1, 4.2], "--from")],
)
def test_an_unreliable_suggestion_is_flagged(smooth: list[float], caveat: str) -> None:
    result = make_sweep(smooth)
    assert caveat in result.caveat
    assert result.steepest in result.points


def test_the_budget_can_be_a_time_limit(words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr("makemore.training.lr_find.time.perf_counter", lambda: float(next(clock)))
    rates = [p.lr for p in sweep(words, low=1e-6, high=1e-4, max_time=20.0).points]
    assert rates == pytest.approx([1e-6 * 10 ** (i / 10) for i in range(21)])


def test_the_same_seed_gives_the_same_sweep(words: Path) -> None:
    assert sweep(words, steps=15).points == sweep(words, steps=15).points


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_only_the_plot_is_written(words: Path, tmp_path: Path, suffix: str) -> None:
    picture = tmp_path / "deep" / f"rates.{suffix}"
    sweep(words, picture=picture)
    assert sorted(tmp_path.rglob("*")) == sorted([words, picture.parent, picture])
    data = picture.read_bytes()
    assert data.startswith(PNG) if suffix == "png" else b"<svg" in data


def test_an_existing_run_is_not_changed(words: Path, tmp_path: Path) -> None:
    run = tmp_path / "checkpoints" / "words-mlp"
    run.mkdir(parents=True)
    (run / "config.json").write_text("{}", encoding="utf-8")
    sweep(words, steps=12)
    assert [p.name for p in run.iterdir()] == ["config.json"]
    assert (tmp_path / "checkpoints" / "words-mlp-lr.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("model", "request_", "message"),
    [
        ("count", {}, "no learning rate"),
        ("mlp", {"low": 0.1, "high": 0.01}, "--to above --from"),
        ("mlp", {"low": 0.0}, "above 0"),
        ("mlp", {"low": math.nan}, "above 0"),
        ("mlp", {"high": math.inf}, "must be finite"),
        ("mlp", {"steps": 3}, "10 or more"),
        ("mlp", {"picture": Path("rates.txt")}, "must end in"),
    ],
)
def test_invalid_sweeps_are_rejected(
    words: Path, tmp_path: Path, model: str, request_: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        sweep(words, model, **request_)
    assert list(tmp_path.iterdir()) == [words]


def test_immediate_divergence_is_an_error(words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nan_step(self: AutogradLearner, *arguments: Any) -> Metrics:
        return Metrics(torch.tensor(math.nan), None, torch.tensor(1))

    monkeypatch.setattr(AutogradLearner, "step", nan_step)
    with pytest.raises(UserError, match="lower --from"):
        sweep(words)
