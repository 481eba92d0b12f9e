"""What training reports: records of the loop, outcomes, and the result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from makemore.errors import UserError
from makemore.evaluation.baseline import Baseline
from makemore.runs.run import Run
from makemore.settings import TrainConfig
from makemore.types import Score


class Diverged(UserError):  # noqa: N818 - names an outcome
    """The loss, a gradient or the val loss is not finite; the failed step is not saved."""


@dataclass(frozen=True, kw_only=True)
class TrainRecord:
    """State and measurements at a step; losses in nats per token. ``loss`` and ``tokens_per_second`` are
    means since the previous record."""

    step: int
    tokens: int
    """Target tokens trained on so far."""
    elapsed: float
    """Training time so far, in seconds."""
    progress: float
    """Fraction of the budget used, in [0, 1]."""
    loss: float | None = None
    val: float | None = None
    """Val loss of the raw or the EMA weights, whichever is lower."""
    lr: float = 0.0
    tokens_per_second: float = 0.0
    improved: bool = False
    save: bool = False
    """Whether to save a checkpoint now."""
    note: str = ""
    val_ema: float | None = None
    """Val loss of the EMA weights, if an EMA is kept."""


class Evaluation(NamedTuple):
    """Val loss (nats per token; None without a val split), whether it is the best so far, EMA val loss."""

    val: float | None
    improved: bool
    val_ema: float | None = None


class TrainingInterrupted(Exception):  # noqa: N818 - requested by the user, not an error
    """Training was interrupted; ``run`` holds a state to resume from."""

    def __init__(self, run: Path) -> None:
        super().__init__(f"stopped; add --resume to the same command to continue (state saved in {run})")
        self.run = run


class NotMainRank(Exception):  # noqa: N818 - not an error
    """Training finished on a rank other than 0, which alone scores and samples."""


class MemberResult(NamedTuple):
    """A member of a mixture that was trained with it."""

    name: str
    nll: float | None
    """Nats per token on the part of val that the gate was fitted on; None without val."""
    weight: float
    """Mean weight, as a share of the sum of all members' weights."""
    seconds: float
    """Training time in seconds."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A finished run and its metrics."""

    run: Run
    score: Score
    steps: int
    best_step: int
    tokens: int
    seconds: float
    stopped_early: bool
    samples: list[str]
    used: dict[str, Any]
    """Resolved settings: device, threads, precision, compiled or native, optimizer, kind of weights."""
    peak_memory: int | None
    """Peak memory of the process, or of its tensors on CUDA, in bytes; None if unavailable."""
    baseline: Baseline | None
    """Score of a count model on the same val; None for count models, without val, or without the memory."""
    remark: str
    """What is wrong with the score, compared to the baseline and to guessing; empty if nothing is."""
    members: tuple[MemberResult, ...] = ()
    """The members of a model that trains its own."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "run": str(self.run.folder.path),
            "model": self.run.config.model.name,
            "parameters": self.run.model.n_parameters(),
            "steps": self.steps,
            "best_step": self.best_step,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(self.tokens / max(self.seconds, 1e-9), 1),
            "stopped_early": self.stopped_early,
            "peak_memory": self.peak_memory,
            "used": self.used,
            self.score.split: self.score.as_dict(),
            "baseline": None if self.baseline is None else self.baseline.as_dict(),
            "remark": self.remark,
            **({"members": [member._asdict() for member in self.members]} if self.members else {}),
            "samples": self.samples,
        }


def divergence_error(config: TrainConfig, reason: str) -> Diverged:
    """The error for a loss or gradient that is not finite, with settings to try."""
    overrides = [f"train.lr={config.optimizer.lr / 3:.2g}"]
    if config.optimizer.name == "muon":
        overrides.append(f"train.matrix_lr={config.optimizer.matrix_lr / 3:.2g}")
    if not config.optimizer.clip:
        overrides.append("train.clip=1")
    return Diverged(
        f"{reason}: training diverged; with --set (in compare: --grid), try {', '.join(overrides)} "
        "or train.on_divergence=rollback; the best model and the last saved state remain"
    )
