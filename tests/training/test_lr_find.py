"""The range test: which rates are tried, what is suggested, when it stops."""

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
    training = TrainRequest(str(path), model, settings=("train.dtype=float32", *settings))
    return find_lr(SweepRequest(training, **{"steps": 40, **request}))


def made(smooth: list[float]) -> Sweep:
    """A sweep of given losses, a decade of rates a step from 1e-6 on."""
    points = [Point(10.0 ** (i - 6), loss, loss) for i, loss in enumerate(smooth)]
    return Sweep("mlp", "muon", 4.0, points, False, Path("x.png"))


def test_rates_are_a_geometric_series_from_end_to_end(words: Path) -> None:
    rates = [p.lr for p in sweep(words, low=1e-6, high=1e-4, steps=21).points]
    assert rates == pytest.approx([1e-6 * 10 ** (i / 10) for i in range(21)])


def test_each_step_is_taken_at_its_rate(words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    step = AutogradLearner.step

    def watched(self: AutogradLearner, *arguments: Any) -> Metrics:
        metrics = step(self, *arguments)
        taken.append([g["lr"] for part in self.optimizers.parts for g in part.param_groups])
        return metrics

    monkeypatch.setattr(AutogradLearner, "step", watched)
    settings = ("train.optimizer=muon", "train.lr=0.01", "train.matrix_lr=0.03")
    found = sweep(words, "mlp", *settings, steps=12)
    assert found.points[0].lr == pytest.approx(0.01 / 1000)  # the recipe's rate sets the range
    for point, rates in zip(found.points, taken, strict=False):
        assert {round(rate / point.lr, 6) for rate in rates} == {1.0, 3.0}
    assert found.matrix_lr == pytest.approx(3 * found.lr)


def test_losses_are_smoothed_without_bias(words: Path) -> None:
    points = sweep(words).points
    losses = [p.loss for p in points]
    for i, point in enumerate(points):
        weights = [0.9 ** (i - k) for k in range(i + 1)]
        wanted = sum(w * x for w, x in zip(weights, losses, strict=False)) / sum(weights)
        assert point.smooth == pytest.approx(wanted)


def test_it_finds_a_rate_that_trains_and_stops_where_it_diverges(words: Path) -> None:
    found = sweep(words, "mlp", "train.optimizer=sgd", "train.clip=0", low=1e-3, high=1e5, steps=80)
    assert found.diverged
    assert found.doubt == ""
    assert found.points[-1].lr < 1e5
    assert all(math.isfinite(p.loss) for p in found.points)
    assert found.steepest.lr <= found.lowest.lr
    assert found.lowest.smooth < 0.9 * found.points[0].loss
    assert 0.01 < found.lr < 10


def test_the_suggestion_is_a_tenth_of_the_lowest() -> None:
    found = made([4.0, 3.9, 3.0, 2.8, 2.7, 4.2])
    assert (found.lr, found.lowest.lr, found.steepest.lr) == pytest.approx((1e-3, 1e-2, 1e-4), rel=1e-9)
    assert found.settings() == {"train.lr": "0.001", "train.matrix_lr": "0.004"}


@pytest.mark.parametrize(
    ("smooth", "doubt"),
    [([4.0, 3.0, 2.0], "--to"), ([4.0, 3.99, 4.1], "--from"), ([4.0, 4.1, 4.2], "--from")],
)
def test_a_suggestion_that_means_nothing_says_so(smooth: list[float], doubt: str) -> None:
    found = made(smooth)
    assert doubt in found.doubt
    assert found.steepest in found.points


def test_time_can_be_the_budget(words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr("makemore.training.lr_find.time.perf_counter", lambda: float(next(clock)))
    rates = [p.lr for p in sweep(words, low=1e-6, high=1e-4, max_time=20.0).points]
    assert rates == pytest.approx([1e-6 * 10 ** (i / 10) for i in range(21)])


def test_the_same_seed_gives_the_same_sweep(words: Path) -> None:
    assert sweep(words, steps=15).points == sweep(words, steps=15).points


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_picture_is_drawn_and_nothing_else_written(words: Path, tmp_path: Path, suffix: str) -> None:
    picture = tmp_path / "deep" / f"rates.{suffix}"
    sweep(words, picture=picture)
    assert sorted(tmp_path.rglob("*")) == sorted([words, picture.parent, picture])
    data = picture.read_bytes()
    assert data.startswith(PNG) if suffix == "png" else b"<svg" in data


def test_a_run_that_is_there_is_left_alone(words: Path, tmp_path: Path) -> None:
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
def test_what_cannot_be_swept_is_refused(
    words: Path, tmp_path: Path, model: str, request_: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        sweep(words, model, **request_)
    assert list(tmp_path.iterdir()) == [words]


def test_a_range_that_diverges_at_once_is_refused(words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bad(self: AutogradLearner, *arguments: Any) -> Metrics:
        return Metrics(torch.tensor(math.nan), None, torch.tensor(1))

    monkeypatch.setattr(AutogradLearner, "step", bad)
    with pytest.raises(UserError, match="lower --from"):
        sweep(words)
