"""Settings as frozen dataclasses. Precedence: TOML file < command line < ``--set dotted.key=value``."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from makemore.errors import UserError, unknown_name

C = TypeVar("C")

RENAMED = {
    "model": {
        "context_length": "block_size",
        "n_heads": "n_head",
        "n_layers": "n_layer",
        "num_heads": "n_head",
        "num_layers": "n_layer",
    },
    "train": {
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
    },
}
"""Other names of settings, by section: earlier ones, which runs and TOML files may still use, and names in
other programs, such as nanoGPT, with the same meaning."""

SIMILAR = {
    "batch_size": "use train.batch_tokens, the tokens of a step: rows times train.block_size",
    "epochs": "use train.steps: an epoch is the number of training tokens divided by train.batch_tokens",
    "min_lr": "use train.final_lr_fraction, a fraction of the peak learning rate",
}
"""Names in other programs of settings that have another unit here."""
MAX_SEED = 2**63 - 1
MODEL_SETTINGS = ("dropout", "n_embd", "n_head", "n_hidden", "n_layer")
"""Model settings that users often write under another section."""


def setting(default: Any, help: str) -> Any:
    """A dataclass field with a default and the help line for ``makemore models``."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class CorpusConfig:
    """Settings for cutting a text into documents and splits."""

    mode: Literal["auto", "lines", "text"] = setting(
        "auto", "lines: one document per line; text: a single document; auto: detected"
    )
    split: str = setting("auto", "fractions for train, val and test, such as 0.8,0.1,0.1")
    encoding: str = setting("utf-8", "character encoding of the input; utf-8:replace replaces invalid bytes")
    dedupe: bool = setting(False, "lines mode: put equal lines into the same split")
    skip_damaged: bool = setting(False, "leave out files that can't be decompressed or decoded")


@dataclass(frozen=True)
class TrainConfig:
    """Training settings: everything except the model."""

    steps: int | None = setting(None, "number of optimizer steps")
    max_time: float | None = setting(None, "training time in seconds, from the first step to the last")
    batch_tokens: int = setting(2048, "tokens per optimizer step")
    grad_accum_steps: int = setting(1, "gradient accumulation: micro-batches per step")
    block_size: int = setting(128, "maximum row length in tokens")
    loader: Literal["windows", "streams", "documents", "packed"] = setting(
        "windows",
        "batch rows: shuffled windows, contiguous streams with carried state, one document (or a "
        "window of a long one) per row, or several documents packed into each row",
    )
    truncation: Literal["regular", "random"] = setting(
        "regular", "streams: row length block_size, or random from 0.5 to 1.5 times that"
    )
    optimizer: str = setting(
        "adamw", "adamw, sgd, or muon (Muon for hidden matrices, AdamW for the rest); none for count models"
    )
    lr: float = setting(3e-3, "peak learning rate (AdamW, SGD)")
    matrix_lr: float = setting(0.02, "peak learning rate of Muon")
    beta1: float = setting(0.9, "AdamW's first-moment decay; SGD's momentum")
    beta2: float = setting(0.99, "AdamW's second-moment decay")
    weight_decay: float = setting(0.0, "decoupled weight decay (matrices only)")
    schedule: Literal["constant", "linear", "cosine", "step"] = setting("linear", "learning-rate decay shape")
    warmup_steps: int = setting(50, "steps of linear warm-up")
    warmdown_fraction: float = setting(0.6, "final fraction of the budget with a falling learning rate")
    milestones: str = setting(
        "auto", "step schedule: budget fractions where the learning rate drops tenfold, such as 0.5,0.8"
    )
    final_lr_fraction: float = setting(0.01, "final learning rate as a fraction of the peak (linear, cosine)")
    clip: float = setting(1.0, "maximum gradient norm (0: no clipping)")
    ema: float = setting(0.0, "decay of the weights' moving average, used if it scores better (0: off)")
    eval_interval: int | None = setting(None, "steps between evaluations (none: 20 evaluations per run)")
    eval_tokens: int = setting(16384, "tokens of val scored at each evaluation during training")
    patience: int = setting(
        6, "evaluations without improvement before early stopping (0: never); the lr is lowered halfway"
    )
    save_interval: float = setting(30.0, "seconds between checkpoints for resuming")
    on_divergence: Literal["stop", "rollback"] = setting(
        "stop", "on a non-finite loss or gradient: stop, or restore the last checkpoint and halve the rate"
    )
    seed: int = setting(0, "random seed for weights, batches and dropout")
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["auto", "float32", "bfloat16"] = setting("auto", "precision of matrix products")
    compile: Literal["auto", "yes", "no"] = setting(
        "auto", "torch.compile the training step; auto: if it pays off and there is no native C code"
    )
    cuda_graph: bool = setting(True, "launch the whole training step as one CUDA graph where possible")
    shard: bool = setting(False, "shard weights and optimizer states across processes (FSDP2)")

    def __post_init__(self) -> None:
        for names, minimum in _MINIMUMS:
            for name in names.split():
                value = getattr(self, name)
                if value is not None and value < minimum:
                    raise ValueError(f"{name}={value:g} must be {minimum} or more")
        if max(self.beta1, self.beta2, self.ema) >= 1 or self.warmdown_fraction > 1:
            raise ValueError("beta1, beta2 and ema must be below 1, warmdown_fraction at most 1")
        if self.grad_accum_steps > self.batch_tokens:
            raise ValueError(
                f"grad_accum_steps={self.grad_accum_steps} must be at most batch_tokens={self.batch_tokens}"
            )
        milestone_fractions(self)
        if self.seed > MAX_SEED:
            raise ValueError(f"seed={self.seed} must be below 2**63")


_MINIMUMS = (
    ("batch_tokens grad_accum_steps block_size eval_interval eval_tokens", 1),
    ("lr matrix_lr beta1 beta2 weight_decay warmup_steps warmdown_fraction final_lr_fraction", 0),
    ("clip ema patience save_interval seed", 0),
)
"""Minimum values of training settings."""


def require_seed(seed: int) -> None:
    """Raise UserError for a seed that a random generator doesn't take."""
    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"--seed {seed}: must be 0 or more and below 2**63")


def milestone_fractions(config: TrainConfig) -> tuple[float, ...]:
    """Fractions of the budget at which the ``step`` schedule drops; ``auto``: the start of the decay.

    Raises ValueError if they aren't numbers between 0 and 1.
    """
    if config.milestones == "auto":
        return (1 - config.warmdown_fraction,)
    try:
        shares = tuple(float(part) for part in config.milestones.split(","))
    except ValueError:
        shares = (math.nan,)
    if not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"milestones={config.milestones} must be auto or fractions such as 0.5,0.8")
    return shares


@dataclass(frozen=True)
class CorpusStats:
    """Inputs of a model's recipe: size and mode of the training text, budget, device."""

    mode: Literal["lines", "text"]
    train_tokens: int
    vocab_size: int
    documents: int
    longest_document: int
    """Length of the longest training document in tokens."""
    device: str
    """``cpu``, ``cuda`` or ``mps``."""
    steps: int | None = None
    max_time: float | None = None

    def tokens(self, batch_tokens: int, tokens_per_second: float) -> float:
        """Estimate of the number of tokens trained on within the budget."""
        by_steps = math.inf if self.steps is None else self.steps * batch_tokens
        by_time = math.inf if self.max_time is None else self.max_time * tokens_per_second
        return min(by_steps, by_time)


@dataclass(frozen=True)
class Recipe:
    """Model settings (the model's ``Config``) and training settings."""

    model: Any
    train: TrainConfig


_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_duration(duration: str | float | None) -> float | None:
    """Seconds of a duration such as ``90``, ``"90s"`` or ``"1.5h"``. Raises UserError if malformed."""
    if duration is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", str(duration).lower())
    if match and match[2] in _UNITS and 0 < (seconds := float(match[1]) * _UNITS[match[2]]) < math.inf:
        return seconds
    raise UserError(f"max-time {duration!r}: give a time such as 90s, 2m or 1.5h")


def split_fractions(spec: str, mode: str) -> tuple[float, float, float]:
    """Fractions for train, val and test; ``auto`` is 80/10/10 for lines and 90/5/5 for text.

    Raises UserError unless they are three numbers ≥ 0 that sum to 1.
    """
    if spec == "auto":
        return (0.8, 0.1, 0.1) if mode == "lines" else (0.9, 0.05, 0.05)
    try:
        shares = tuple(float(part) for part in spec.split(","))
    except ValueError:
        shares = ()
    if len(shares) != 3 or not all(0 <= s <= 1 for s in shares) or abs(sum(shares) - 1) > 1e-6:
        raise UserError(f"--split {spec!r}: give three fractions that sum to 1, such as 0.8,0.1,0.1")
    if shares[0] == 0:
        raise UserError(f"--split {spec!r} leaves nothing to train on; give train a fraction above 0")
    return shares


def current_name(section: str, name: str) -> str:
    """Current name of a setting, which may have been renamed."""
    return RENAMED.get(section, {}).get(name, name)


def _convert(value: Any, kind: Any, key: str) -> Any:
    """Convert a command-line string or TOML value to a field's declared type."""
    origin = typing.get_origin(kind)
    if origin is Literal:
        allowed = [str(a) for a in typing.get_args(kind)]
        if str(value) not in allowed:
            raise UserError(f"{key}={value}: must be one of {', '.join(allowed)}")
        return str(value)
    if origin in (types.UnionType, typing.Union):
        inner = [a for a in typing.get_args(kind) if a is not type(None)]
        return None if value is None or str(value).lower() == "none" else _convert(value, inner[0], key)
    if kind is bool:
        known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if str(value).lower() not in known:
            raise UserError(f"{key}={value}: must be true or false")
        return known[str(value).lower()]
    try:
        if kind is int:
            if isinstance(value, int) or re.fullmatch(r"\s*[+-]?\d+\s*", str(value)):
                return int(value)  # exact, unlike a float above 2**53
            number = float(value)
            if number != int(number):
                raise ValueError
            return int(number)
        if kind is float:
            number = float(value)
            if not math.isfinite(number):
                raise ValueError
            return number
    except (TypeError, ValueError, OverflowError):
        noun = "a whole number" if kind is int else "a number"
        raise UserError(f"{key}={value}: must be {noun}") from None
    return str(value)


def replace_settings(config: C, values: Mapping[str, Any], section: str) -> C:
    """Copy a dataclass with some fields replaced, converted to their declared types.

    Raises UserError as ``convert_settings`` does, or if the values don't go together.
    """
    changes = convert_settings(type(config), values, section)
    try:
        return dataclasses.replace(config, **changes)  # type: ignore[type-var]
    except ValueError as error:
        raise UserError(f"{section}: {error}") from None


def convert_settings(config: type, values: Mapping[str, Any], section: str) -> dict[str, Any]:
    """Convert values to the declared types of a dataclass's fields.

    Raises UserError for an unknown key (suggesting the right one) or a value of the wrong type.
    """
    hints = typing.get_type_hints(config)
    changes = {}
    for name, value in values.items():
        key = current_name(section, name)
        if key not in hints:
            raise _unknown_setting(section, name, hints)
        changes[key] = _convert(value, hints[key], f"{section}.{key}")
    return changes


def _unknown_setting(section: str, name: str, known: Iterable[str]) -> UserError:
    """The error for an unknown setting, naming the right one if it is known or similar."""
    advice = SIMILAR.get(name)
    train, corpus = ([field.name for field in dataclasses.fields(c)] for c in (TrainConfig, CorpusConfig))
    for other, names in (("model", MODEL_SETTINGS), ("corpus", corpus), ("train", train)):
        if other != section and current_name(other, name) in names:
            advice = f"use {other}.{current_name(other, name)}"
    if advice:
        return UserError(f"unknown setting '{section}.{name}'; {advice}")
    return unknown_name("setting", f"{section}.{name}", [f"{section}.{key}" for key in known])


def parse_settings(settings: list[str], names: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Parse ``["model.order=2", …]`` into ``{"model": {"order": "2"}, …}``.

    Raises UserError for a setting not of the form ``section.key=value`` or an unknown section.
    """
    by_section: dict[str, dict[str, str]] = {name: {} for name in names}
    for text in settings:
        key, equals, value = text.partition("=")
        section, dot, name = key.strip().partition(".")
        if not equals or not dot:
            raise UserError(f"--set {text!r}: write section.key=value, such as model.n_layer=4")
        if section not in by_section:
            raise unknown_name("section of settings", section, names)
        by_section[section][name] = value.strip()
    return by_section
