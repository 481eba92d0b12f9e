"""The learning-rate range test (Smith 2017, "Cyclical Learning Rates for Training Neural Networks"):
train for a short while at rates that grow exponentially, and see where the loss falls and where it
turns."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from makemore.errors import UserError
from makemore.training.assembly import make_trainer
from makemore.training.learners.gradient import GradientLearner
from makemore.training.learners.guard import NotFinite
from makemore.training.observers import Observer, Silent
from makemore.training.planning import Plan, TrainRequest, prepare, source_of
from makemore.training.trainer import Record

SMOOTHING = 0.9
DIVERGED = 1.1
"""A smoothed loss this many times the first one ends the sweep."""
FEWEST_POINTS = 10
PICTURES = (".pdf", ".png", ".svg")


@dataclass(frozen=True)
class SweepRequest:
    """A request to train, whose rate is swept; nothing is trained for good."""

    training: TrainRequest
    low: float | None = None
    """None: a thousandth of the recipe's rate."""
    high: float | None = None
    """None: a hundred times the recipe's rate."""
    steps: int = 200
    max_time: float | None = None
    """Seconds; takes the place of ``steps``."""
    picture: Path | None = None
    """None: beside the runs, named after input and model."""


class Point(NamedTuple):
    """One step: its rate, and its loss as it was and smoothed, in nats per token."""

    lr: float
    loss: float
    smooth: float


@dataclass(frozen=True)
class Sweep:
    """A range test and what it suggests."""

    model: str
    optimizer: str
    matrix_share: float | None
    """Muon's rate over AdamW's, which it keeps; None where Muon trains nothing."""
    points: list[Point]
    diverged: bool
    picture: Path

    @property
    def lowest(self) -> Point:
        """Where the smoothed loss is lowest."""
        return min(self.points, key=lambda point: point.smooth)

    @property
    def steepest(self) -> Point:
        """Where, on the way there, the smoothed loss falls fastest per decade of the rate."""
        falling = self.points[: max(self.points.index(self.lowest), 1) + 1]
        slopes = np.gradient([p.smooth for p in falling], np.log([p.lr for p in falling]))
        return falling[int(slopes.argmin())]

    @property
    def lr(self) -> float:
        """The suggestion: a tenth of the rate with the lowest loss."""
        return self.lowest.lr / 10

    @property
    def matrix_lr(self) -> float | None:
        """Muon's rate that goes with it."""
        return None if self.matrix_share is None else self.lr * self.matrix_share

    @property
    def doubt(self) -> str:
        """Why the suggestion is not to be trusted, where it isn't."""
        if self.lowest is self.points[-1]:
            return "the loss still fell at the highest rate; raise --to"
        if self.lowest.smooth > 0.98 * self.points[0].loss:
            return "the loss hardly fell; lower --from or take more --steps"
        return ""

    def settings(self) -> dict[str, str]:
        """The suggestion as settings of a training run."""
        rates = {"train.lr": self.lr, "train.matrix_lr": self.matrix_lr}
        return {name: f"{rate:.2g}" for name, rate in rates.items() if rate is not None}

    def as_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "suggested": {name.partition(".")[2]: float(rate) for name, rate in self.settings().items()},
            "method": "a tenth of the rate with the lowest smoothed loss",
            "lowest": self.lowest._asdict(),
            "steepest": self.steepest._asdict(),
            "diverged": self.diverged,
            "doubt": self.doubt,
            "picture": str(self.picture),
            "points": [point._asdict() for point in self.points],
        }


def find_rate(request: SweepRequest, observer: Observer | None = None) -> Sweep:
    """Sweep the rate of the training that was asked for, and draw the picture.

    Model, recipe, loader and learner are those of training; it is compiled only if that was asked for.
    Raises UserError for a rung that counts, a range that is none, or a picture that can't be written.
    """
    observer = observer or Silent()
    picture = request.picture or _default_picture(request.training)
    if picture.suffix.lower() not in PICTURES:
        raise UserError(f"--out {picture}: a picture's name ends in {', '.join(PICTURES)}")
    plan = prepare(dataclasses.replace(request.training, overwrite=True), observer)
    train = plan.train
    if train.optimizer == "none":
        raise UserError(f"{plan.model_name} counts; it has no learning rate to find")
    low, high = _range(request, train.lr)
    plan = dataclasses.replace(plan, compiled=train.compile == "yes")
    observer.start(plan)
    # At the schedule's end stands the highest rate.
    share = train.matrix_lr / train.lr if train.lr else 0.0
    swept = dataclasses.replace(train, lr=high, matrix_lr=high * share)
    plan = dataclasses.replace(plan, train=swept)
    points, diverged = _smoothed(_losses(plan, request, low, high, observer))
    if len(points) < FEWEST_POINTS:
        raise UserError(f"diverged after {len(points)} steps, at {low:g}; lower --from")
    matrix_share = share if train.optimizer == "muon" else None
    sweep = Sweep(plan.model_name, train.optimizer, matrix_share, points, diverged, picture)
    draw(sweep)
    return sweep


def _default_picture(training: TrainRequest) -> Path:
    return Path("checkpoints") / f"{source_of(training).stem}-{training.model}-lr.png"


def _range(request: SweepRequest, peak: float) -> tuple[float, float]:
    low = peak / 1000 if request.low is None else request.low
    high = 100 * peak if request.high is None else request.high
    if not 0 < low < high < math.inf:
        raise UserError(f"--from {low:g} --to {high:g}: rates must be above 0, the second above the first")
    if request.max_time is None and request.steps < FEWEST_POINTS:
        raise UserError(f"--steps {request.steps}: must be {FEWEST_POINTS} or more")
    return low, high


def _losses(
    plan: Plan, request: SweepRequest, low: float, high: float, observer: Observer
) -> Iterator[tuple[float, float]]:
    """(rate, loss) of each step, at rates from low to high."""
    trainer = make_trainer(plan, lambda: False)
    assert isinstance(trainer.learner, GradientLearner)
    trainer.learner.optimizers.schedule = lambda step, progress: (low / high) ** (1 - progress)
    begun, progress, tokens = time.perf_counter(), 0.0, 0
    while progress <= 1:
        lr = high * (low / high) ** (1 - progress)
        try:
            metrics = trainer.advance(progress)
        except NotFinite:
            yield lr, math.nan
            return
        if metrics is None or metrics.loss is None:
            return
        loss = float(metrics.loss)
        elapsed, tokens = time.perf_counter() - begun, tokens + int(metrics.tokens)
        speed = tokens / max(elapsed, 1e-9)
        observer.record(Record(trainer.step, loss, None, lr, tokens, speed, elapsed, progress))
        yield lr, loss
        progress = elapsed / request.max_time if request.max_time else trainer.step / (request.steps - 1)


def _smoothed(losses: Iterator[tuple[float, float]]) -> tuple[list[Point], bool]:
    """Points up to divergence, smoothed by a bias-corrected moving average; whether it diverged."""
    points: list[Point] = []
    average = 0.0
    for lr, loss in losses:
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        smooth = average / (1 - SMOOTHING ** (len(points) + 1))
        if not math.isfinite(loss) or (points and smooth > DIVERGED * points[0].loss):
            return points, True
        points.append(Point(lr, loss, smooth))
    return points, False


def draw(sweep: Sweep) -> None:
    """Loss against rate, the suggestion marked. Raises UserError where the file can't be written."""
    from matplotlib.figure import Figure

    rates, losses, smooth = zip(*sweep.points, strict=True)
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.semilogx(rates, losses, color="0.75", linewidth=1, label="loss of each step")
    axes.semilogx(rates, smooth, color="tab:blue", linewidth=2, label="smoothed")
    marked = ", ".join(f"{name} = {rate}" for name, rate in sweep.settings().items())
    axes.axvline(sweep.lr, color="tab:red", linestyle="--", label=f"suggested: {marked}")
    axes.plot(sweep.lowest.lr, sweep.lowest.smooth, "o", color="tab:blue", label="lowest")
    axes.plot(sweep.steepest.lr, sweep.steepest.smooth, "v", color="tab:green", label="steepest descent")
    bottom, top = min(smooth), max(smooth)
    axes.set_ylim(bottom - 0.1 * (top - bottom), top + 0.1 * (top - bottom))
    axes.set_xlabel("learning rate (train.lr, logarithmic)")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title(f"Learning-rate range test: {sweep.model}, {sweep.optimizer}")
    axes.grid(visible=True, which="major", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    try:
        sweep.picture.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(sweep.picture)
    except OSError as error:
        raise UserError(f"can't write {sweep.picture}: {error.strerror}") from None
