"""Settings of training, in groups."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from makemore.errors import UserError
from makemore.settings.base import (
    SECTION_CLASSES,
    CommaSeparated,
    Fraction,
    Group,
    NonNegative,
    NonNegativeInt,
    Probability,
    Settings,
    Size,
)

ALIASES = {
    "accumulate": "grad_accum_steps",
    "context_length": "block_size",
    "decay_share": "warmdown_fraction",
    "drop_at": "milestones",
    "final_lr": "final_lr_fraction",
    "grad_clip": "clip",
    "gradient_accumulation_steps": "grad_accum_steps",
    "learning_rate": "lr",
    "max_iters": "steps",
    "max_steps": "steps",
    "warmup_iters": "warmup_steps",
}
"""Names of training settings from earlier versions and other programs."""
MAX_SEED = 2**63 - 1
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_duration(duration: str | float | None) -> float | None:
    """Seconds of a duration such as ``90``, ``"90s"`` or ``"1.5h"``. Raises UserError if malformed."""
    if not isinstance(duration, str):
        return duration
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", str(duration).lower())
    if match and match[2] in _UNITS and 0 < (seconds := float(match[1]) * _UNITS[match[2]]) < math.inf:
        return seconds
    raise UserError(f"max-time {duration!r}: give a time such as 90s, 2m or 1.5h")


class DataConfig(Group):
    """Batches."""

    aliases: ClassVar[Mapping[str, str]] = ALIASES
    batch_tokens: Size = Field(2048, description="tokens per optimizer step")
    grad_accum_steps: Size = Field(1, description="gradient accumulation: micro-batches per step")
    block_size: Size = Field(128, description="maximum row length in tokens")
    loader: Literal["windows", "streams", "documents", "packed"] = Field(
        "windows",
        description="batch rows: shuffled windows, contiguous streams with carried state, one document (or a "
        "window of a long one) per row, or several documents packed into each row",
    )
    truncation: Literal["regular", "random"] = Field(
        "regular", description="streams: row length block_size, or random from 0.5 to 1.5 times that"
    )

    @model_validator(mode="after")
    def _check_accumulation(self) -> Self:
        if self.grad_accum_steps > self.batch_tokens:
            raise ValueError(
                f"grad_accum_steps={self.grad_accum_steps} must be at most batch_tokens={self.batch_tokens}"
            )
        return self


class OptimizerConfig(Group):
    """Optimizer, gradient clipping and weight averaging."""

    aliases: ClassVar[Mapping[str, str]] = ALIASES
    main: ClassVar[str] = "name"
    name: str = Field(
        "adamw",
        description="adamw, sgd, or muon (Muon for hidden matrices, AdamW for the rest); none: count models",
    )
    lr: NonNegative = Field(3e-3, description="peak learning rate (AdamW, SGD)")
    matrix_lr: NonNegative = Field(0.02, description="peak learning rate of Muon")
    beta1: Probability = Field(0.9, description="AdamW's first-moment decay; SGD's momentum")
    beta2: Probability = Field(0.99, description="AdamW's second-moment decay")
    weight_decay: NonNegative = Field(0.0, description="decoupled weight decay (matrices only)")
    clip: NonNegative = Field(1.0, description="maximum gradient norm (0: no clipping)")
    ema: Probability = Field(
        0.0, description="decay of the weights' moving average, used if it scores better (0: off)"
    )


class ScheduleConfig(Group):
    """Learning-rate schedule."""

    aliases: ClassVar[Mapping[str, str]] = {**ALIASES, "name": "shape"}
    main: ClassVar[str] = "shape"
    shape: Literal["constant", "linear", "cosine", "step"] = Field(
        "linear", description="learning-rate decay shape"
    )
    warmup_steps: NonNegativeInt = Field(50, description="steps of linear warm-up")
    warmdown_fraction: Fraction = Field(
        0.6, description="final fraction of the budget with a falling learning rate"
    )
    milestones: CommaSeparated = Field(
        "auto",
        description="step schedule: budget fractions where the learning rate drops tenfold, such as 0.5,0.8",
    )
    final_lr_fraction: NonNegative = Field(
        0.01, description="final learning rate as a fraction of the peak (linear, cosine)"
    )

    @property
    def milestone_fractions(self) -> tuple[float, ...]:
        """Fractions of the budget at which the ``step`` schedule drops; ``auto``: the start of the decay."""
        if self.milestones == "auto":
            return (1 - self.warmdown_fraction,)
        return tuple(float(part) for part in self.milestones.split(","))

    @model_validator(mode="after")
    def _check_milestones(self) -> Self:
        try:
            is_valid = all(0 <= fraction <= 1 for fraction in self.milestone_fractions)
        except ValueError:
            is_valid = False
        if not is_valid:
            raise ValueError(f"milestones={self.milestones} must be auto or fractions such as 0.5,0.8")
        return self


class RuntimeConfig(Group):
    """Device, precision and compilation."""

    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="precision of matrix products")
    compile: Literal["auto", "yes", "no"] = Field(
        "auto",
        description="torch.compile the training step; auto: if it is faster, and there is no native C code",
    )
    cuda_graph: bool = Field(
        True, description="launch the whole training step as one CUDA graph where possible"
    )
    shard: bool = Field(False, description="shard weights and optimizer states across processes (FSDP2)")


class TrainConfig(Settings):
    """Training settings: everything except the model."""

    aliases: ClassVar[Mapping[str, str]] = ALIASES
    steps: Size | None = Field(None, description="number of optimizer steps")
    max_time: Annotated[float, Field(gt=0), BeforeValidator(parse_duration)] | None = Field(
        None, description="training time in seconds, or as 90s, 5m or 1.5h, from the first step to the last"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        0, description="random seed for weights, batches and dropout"
    )
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    eval_interval: Size | None = Field(
        None, description="steps between evaluations (none: 20 evaluations per run)"
    )
    eval_tokens: Size = Field(16384, description="tokens of val scored at each evaluation during training")
    patience: NonNegativeInt = Field(
        6,
        description="evaluations without improvement before early stopping (0: never); the learning rate is "
        "lowered halfway",
    )
    save_interval: NonNegative = Field(
        30.0,
        description="seconds between checkpoints for resuming; raised if saving takes over 5% of the time",
    )
    on_divergence: Literal["stop", "rollback"] = Field(
        "stop",
        description="on a non-finite loss or gradient: stop, or restore the last state and halve the "
        "learning rate",
    )


SECTION_CLASSES["train"] = TrainConfig


def require_seed(seed: int) -> None:
    """Raise UserError for a seed outside the generator's range."""
    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"--seed {seed}: must be 0 or more and below 2**63")
