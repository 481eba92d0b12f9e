"""Records reported by the training loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from makemore.errors import UserError
from makemore.settings import TrainConfig


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


def divergence_error(config: TrainConfig, reason: str) -> Diverged:
    """The error for a loss or gradient that is not finite, with settings to try."""
    overrides = [f"train.lr={config.optimizer.lr / 3:.2g}"]
    if config.optimizer.name == "muon":
        overrides.append(f"train.matrix_lr={config.optimizer.matrix_lr / 3:.2g}")
    if not config.optimizer.clip:
        overrides.append("train.clip=1")
    return Diverged(
        f"{reason}: training diverged; lower the learning rate, e.g. with "
        f"--set {' --set '.join(overrides)}, or add --on-divergence rollback; "
        "the best model and the last saved state are kept"
    )
