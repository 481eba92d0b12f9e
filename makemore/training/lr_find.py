"""The learning-rate range test (Smith 2017, "Cyclical Learning Rates for Training Neural Networks"):
train briefly at exponentially growing learning rates, and find where the loss falls and where it rises."""

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
from makemore.runtime.files import require_replaceable
from makemore.training.assembly import make_trainer
from makemore.training.learners.gradient import GradientLearner
from makemore.training.learners.guard import NonFiniteError
from makemore.training.observers import Observer
from makemore.training.plan import Plan
from makemore.training.planning import prepare
from makemore.training.records import TrainRecord
from makemore.training.request import TrainRequest, open_source

SMOOTHING = 0.9
DIVERGENCE_FACTOR = 1.1
"""Stop the sweep when the smoothed loss exceeds this multiple of the first loss."""
MIN_POINTS = 10
FIGURE_SUFFIXES = (".pdf", ".png", ".svg")
FIGURE_MARKS = (b"%PDF", b"\x89PNG", b"<svg")


@dataclass(frozen=True, kw_only=True)
class SweepRequest:
    """A training request whose learning rate is swept; the trained model is discarded."""

    training: TrainRequest
    low: float | None = None
    """Lowest learning rate (None: 1/1000 of the recipe's learning rate)."""
    high: float | None = None
    """Highest learning rate (None: 100 times the recipe's learning rate)."""
    steps: int = 200
    max_time: float | None = None
    """Time limit in seconds; overrides ``steps``."""
    picture: Path | None = None
    """Path of the plot (None: in checkpoints/, named after input and model)."""


class Point(NamedTuple):
    """One step: learning rate, loss and smoothed loss (nats per token)."""

    lr: float
    loss: float
    smooth: float


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Result of a range test."""

    model: str
    optimizer: str
    muon_lr_ratio: float | None
    """Fixed ratio of Muon's to AdamW's learning rate; None if Muon isn't used."""
    points: list[Point]
    diverged: bool
    picture: Path

    @property
    def lowest(self) -> Point:
        """Point with the lowest smoothed loss."""
        return min(self.points, key=lambda point: point.smooth)

    @property
    def steepest(self) -> Point:
        """Point up to the lowest at which the smoothed loss falls fastest per decade of learning rate."""
        falling = self.points[: max(self.points.index(self.lowest), 1) + 1]
        slopes = np.gradient([p.smooth for p in falling], np.log([p.lr for p in falling]))
        return falling[int(slopes.argmin())]

    @property
    def lr(self) -> float:
        """Suggested learning rate: a tenth of the rate with the lowest smoothed loss."""
        return self.lowest.lr / 10

    @property
    def matrix_lr(self) -> float | None:
        """Suggested learning rate for Muon."""
        return None if self.muon_lr_ratio is None else self.lr * self.muon_lr_ratio

    @property
    def caveat(self) -> str:
        """Reason why the suggestion is unreliable; empty if it is reliable."""
        if self.lowest is self.points[-1]:
            return "the loss was still falling at the highest learning rate; raise --to"
        if self.lowest.smooth > 0.98 * self.points[0].loss:
            return "the loss hardly fell; lower --from or use more --steps"
        return ""

    def settings(self) -> dict[str, str]:
        """The suggestion as training settings."""
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
            "caveat": self.caveat,
            "picture": str(self.picture),
            "points": [point._asdict() for point in self.points],
        }


def find_lr(request: SweepRequest, observer: Observer | None = None) -> Sweep:
    """Sweep the learning rate of a training request and plot the result.

    Uses the same model, recipe, loader and learner as training, but compiles only if explicitly requested.
    Raises UserError for a model without a learning rate, an invalid range or an unwritable figure.
    """
    observer = observer or Observer()
    name = f"{open_source(request.training).stem}-{request.training.model}-lr.png"
    picture = request.picture or Path("checkpoints") / name
    if picture.suffix.lower() not in FIGURE_SUFFIXES:
        raise UserError(f"--out {picture}: the name must end in {', '.join(FIGURE_SUFFIXES)}")
    require_replaceable(picture, FIGURE_MARKS, "--out")
    plan = prepare(dataclasses.replace(request.training, overwrite=True), observer)
    train = plan.train
    if train.optimizer.name == "none":
        raise UserError(f"{plan.model_name} has no learning rate; choose another --model")
    low, high = _lr_range(request, train.optimizer.lr)
    steps = None if request.max_time else request.steps
    train = train.replace(steps=steps, max_time=request.max_time)
    plan = dataclasses.replace(plan, train=train, compiled=train.runtime.compile == "yes")
    observer.start(plan)
    # The schedule in _losses scales these, ending at a factor of 1.
    ratio = train.optimizer.matrix_lr / train.optimizer.lr if train.optimizer.lr else 0.0
    swept = train.replace(lr=high, matrix_lr=high * ratio)
    plan = dataclasses.replace(plan, train=swept)
    points, diverged = _smooth(_losses(plan, request, low, high, observer))
    if len(points) < MIN_POINTS:
        raise UserError(f"training diverged after {len(points)} steps, starting at {low:g}; lower --from")
    sweep = Sweep(
        model=plan.model_name,
        optimizer=train.optimizer.name,
        muon_lr_ratio=ratio if train.optimizer.name == "muon" else None,
        points=points,
        diverged=diverged,
        picture=picture,
    )
    plot(sweep)
    return sweep


def _lr_range(request: SweepRequest, recipe_lr: float) -> tuple[float, float]:
    low = recipe_lr / 1000 if request.low is None else request.low
    high = 100 * recipe_lr if request.high is None else request.high
    if not 0 < low < high < math.inf:
        raise UserError(f"--from {low:g} --to {high:g}: must be finite and above 0, --to above --from")
    if request.max_time is None and request.steps < MIN_POINTS:
        raise UserError(f"--steps {request.steps}: must be {MIN_POINTS} or more")
    return low, high


def _losses(
    plan: Plan, request: SweepRequest, low: float, high: float, observer: Observer
) -> Iterator[tuple[float, float]]:
    """Yield (learning rate, loss) of each step, from ``low`` to ``high``."""
    trainer = make_trainer(plan, lambda: False)
    assert isinstance(trainer.learner, GradientLearner)
    trainer.learner.optimizers.schedule = lambda step, progress: (low / high) ** (1 - progress)
    start, progress, tokens = time.perf_counter(), 0.0, 0
    while progress <= 1:
        lr = high * (low / high) ** (1 - progress)
        try:
            metrics = trainer.advance(progress)
        except NonFiniteError:
            yield lr, math.nan
            return
        if metrics is None or metrics.loss is None:
            return
        loss, tokens = float(metrics.loss), tokens + int(metrics.tokens)
        elapsed = time.perf_counter() - start
        record = TrainRecord(step=trainer.step, tokens=tokens, elapsed=elapsed, progress=progress, loss=loss)
        speed = tokens / max(elapsed, 1e-9)
        observer.record(dataclasses.replace(record, lr=lr, tokens_per_second=speed))
        yield lr, loss
        progress = elapsed / request.max_time if request.max_time else trainer.step / (request.steps - 1)


def _smooth(losses: Iterator[tuple[float, float]]) -> tuple[list[Point], bool]:
    """Smooth losses by a bias-corrected EMA, up to divergence; also returns whether training diverged."""
    points: list[Point] = []
    ema = 0.0
    for lr, loss in losses:
        ema = SMOOTHING * ema + (1 - SMOOTHING) * loss
        smooth = ema / (1 - SMOOTHING ** (len(points) + 1))
        if not math.isfinite(loss) or (points and smooth > DIVERGENCE_FACTOR * points[0].loss):
            return points, True
        points.append(Point(lr, loss, smooth))
    return points, False


def plot(sweep: Sweep) -> None:
    """Plot loss against learning rate. Raises UserError if the file can't be written."""
    from matplotlib.figure import Figure

    rates, losses, smooth = zip(*sweep.points, strict=True)
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.semilogx(rates, losses, color="0.75", linewidth=1, label="loss per step")
    axes.semilogx(rates, smooth, color="tab:blue", linewidth=2, label="smoothed")
    suggestion = ", ".join(f"{name} = {rate}" for name, rate in sweep.settings().items())
    axes.axvline(sweep.lr, color="tab:red", linestyle="--", label=f"suggested: {suggestion}")
    axes.plot(sweep.lowest.lr, sweep.lowest.smooth, "o", color="tab:blue", label="lowest")
    axes.plot(sweep.steepest.lr, sweep.steepest.smooth, "v", color="tab:green", label="steepest descent")
    bottom, top = min(smooth), max(smooth)
    axes.set_ylim(bottom - 0.1 * (top - bottom), top + 0.1 * (top - bottom))
    axes.set(xlabel="learning rate (train.lr, logarithmic)", ylabel="loss (nats per token)")
    axes.set_title(f"Learning-rate range test: {sweep.model}, {sweep.optimizer}")
    axes.grid(visible=True, which="major", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    try:
        sweep.picture.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(sweep.picture)
    except OSError as error:
        raise UserError(f"can't write {sweep.picture}: {error.strerror}; name another --out") from None
