"""Settings as frozen dataclasses: TOML file < command line < ``--set dotted.key=value``."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from makemore.errors import UserError, unknown_name

C = TypeVar("C")


def setting(default: Any, help: str) -> Any:
    """A dataclass field with a default and the line that ``makemore models`` prints for it."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class CorpusConfig:
    """How a text becomes documents and splits."""

    mode: Literal["auto", "lines", "text"] = setting(
        "auto", "a document a line, one document in all, or chosen by looking"
    )
    split: str = setting("auto", "shares of train, val and test, e.g. 0.8,0.1,0.1")
    encoding: str = setting("utf-8", "the file's encoding")
    dedupe: bool = setting(False, "lines: equal ones are kept together in one split")


@dataclass(frozen=True)
class TrainConfig:
    """The recipe: everything about training that isn't the model itself."""

    steps: int | None = setting(None, "optimizer steps to take")
    max_time: float | None = setting(None, "seconds from the first step to the last")
    batch_tokens: int = setting(2048, "tokens a step")
    accumulate: int = setting(1, "parts that a step's batch is computed in, one after the other")
    block_size: int = setting(128, "longest row of a batch, in tokens")
    loader: Literal["windows", "streams", "documents", "packed"] = setting(
        "windows",
        "rows: shuffled windows, contiguous streams with carried state, a document (or a "
        "window of a long one) each, or as many documents as fit",
    )
    truncation: Literal["regular", "random"] = setting(
        "regular", "streams: every row block_size long, or half to one and a half times that"
    )
    optimizer: Literal["adamw", "muon", "sgd", "none"] = setting(
        "adamw", "muon: hidden matrices by Muon, the rest by AdamW"
    )
    lr: float = setting(3e-3, "peak learning rate (AdamW, SGD)")
    matrix_lr: float = setting(0.02, "peak learning rate of Muon's matrices")
    beta1: float = setting(0.9, "AdamW's first-moment decay; momentum of SGD")
    beta2: float = setting(0.99, "AdamW's second-moment decay")
    weight_decay: float = setting(0.0, "decoupled weight decay of matrices")
    schedule: Literal["constant", "linear", "cosine", "step"] = setting("linear", "shape of the decay")
    warmup_steps: int = setting(50, "steps of linear warm-up")
    decay_share: float = setting(0.6, "share of the budget at its end over which the rate falls")
    drop_at: str = setting(
        "auto", "step schedule: shares of the budget at which the rate falls tenfold, such as 0.5,0.8"
    )
    final_lr: float = setting(0.01, "rate at the end, as a share of the peak (linear, cosine)")
    clip: float = setting(1.0, "largest gradient norm (0: no clipping)")
    ema: float = setting(0.0, "decay of the weights' moving average, kept where it is better (0: none)")
    eval_interval: int | None = setting(None, "steps between evaluations (none: 20 a budget)")
    eval_tokens: int = setting(16384, "tokens of val scored at each evaluation in training")
    patience: int = setting(
        6, "evaluations without progress before stopping (0: never); after half as many the rate is lowered"
    )
    save_interval: float = setting(30.0, "seconds between states saved for resuming")
    on_divergence: Literal["stop", "rollback"] = setting(
        "stop", "no finite loss or gradient: stop, or go on from the last state at half the rate"
    )
    seed: int = setting(0, "seed of weights, batches and dropout")
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["auto", "float32", "bfloat16"] = setting("auto", "precision of matrix products")
    compile: Literal["auto", "yes", "no"] = setting(
        "auto", "torch.compile the step; auto: C or where it pays"
    )
    shard: bool = setting(False, "several processes: cut weights and optimizer states over them (FSDP2)")

    def __post_init__(self) -> None:
        for names, least in _LEAST:
            for name in names.split():
                value = getattr(self, name)
                if value is not None and value < least:
                    raise ValueError(f"{name}={value:g} must be {least} or more")
        if max(self.beta1, self.beta2, self.ema) >= 1 or self.decay_share > 1:
            raise ValueError("beta1, beta2 and ema must be below 1, decay_share at most 1")
        if self.accumulate > self.batch_tokens:
            raise ValueError(f"accumulate={self.accumulate} must be at most batch_tokens={self.batch_tokens}")
        drop_shares(self)
        if self.seed >= 2**63:
            raise ValueError(f"seed={self.seed} must be below 2**63")


_LEAST = (
    ("batch_tokens accumulate block_size eval_interval eval_tokens", 1),
    ("lr matrix_lr beta1 beta2 weight_decay warmup_steps decay_share final_lr clip ema patience", 0),
    ("save_interval seed", 0),
)
"""Settings of the recipe that have a least value."""


def drop_shares(config: TrainConfig) -> tuple[float, ...]:
    """Shares of the budget at which the ``step`` schedule drops; ``auto`` is where decay begins.

    Raises ValueError where they aren't numbers between 0 and 1.
    """
    if config.drop_at == "auto":
        return (1 - config.decay_share,)
    try:
        shares = tuple(float(part) for part in config.drop_at.split(","))
    except ValueError:
        shares = (math.nan,)
    if not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"drop_at={config.drop_at} must be auto or shares such as 0.5,0.8")
    return shares


@dataclass(frozen=True)
class CorpusFacts:
    """What a recipe may look at: the size and kind of the training text, the budget, the device."""

    mode: Literal["lines", "text"]
    train_tokens: int
    vocab_size: int
    documents: int
    longest_document: int
    """In tokens, of the training split."""
    device: str
    """``cpu``, ``cuda`` or ``mps``."""
    steps: int | None = None
    max_time: float | None = None

    def tokens(self, batch_tokens: int, tokens_a_second: float) -> float:
        """About how many tokens the budget trains on."""
        by_steps = math.inf if self.steps is None else self.steps * batch_tokens
        by_time = math.inf if self.max_time is None else self.max_time * tokens_a_second
        return min(by_steps, by_time)


@dataclass(frozen=True)
class Recipe:
    """A model's settings (its own ``Config``) and how to train it."""

    model: Any
    train: TrainConfig


def split_shares(spec: str, mode: str) -> tuple[float, float, float]:
    """Shares of train, val and test: ``auto`` is 80/10/10 for lines and 90/5/5 for text.

    Raises UserError where the shares aren't three numbers ≥ 0 that sum to 1.
    """
    if spec == "auto":
        return (0.8, 0.1, 0.1) if mode == "lines" else (0.9, 0.05, 0.05)
    try:
        shares = tuple(float(part) for part in spec.split(","))
    except ValueError:
        shares = ()
    if len(shares) != 3 or not all(0 <= s <= 1 for s in shares) or abs(sum(shares) - 1) > 1e-6:
        raise UserError(f"--split {spec!r}: give three shares that sum to 1, such as 0.8,0.1,0.1")
    if shares[0] == 0:
        raise UserError(f"--split {spec!r} leaves nothing to train on")
    return shares


def _convert(value: Any, kind: Any, key: str) -> Any:
    """Turn a command-line string or TOML value into the type a field declares."""
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
            number = float(value)
            if number != int(number):
                raise ValueError
            return int(value) if isinstance(value, str) and value.lstrip("+-").isdigit() else int(number)
        if kind is float:
            number = float(value)
            if not math.isfinite(number):
                raise ValueError
            return number
    except (TypeError, ValueError, OverflowError):
        noun = "a whole number" if kind is int else "a number"
        raise UserError(f"{key}={value}: must be {noun}") from None
    return str(value)


def override(config: C, values: Mapping[str, Any], section: str) -> C:
    """A copy of a dataclass with some fields replaced, converted to the declared types.

    Raises UserError for an unknown key (with the nearest right one) or a value of the wrong type.
    """
    hints = typing.get_type_hints(type(config))
    changes = {}
    for key, value in values.items():
        if key not in hints:
            raise unknown_name("setting", f"{section}.{key}", [f"{section}.{h}" for h in hints])
        changes[key] = _convert(value, hints[key], f"{section}.{key}")
    try:
        return dataclasses.replace(config, **changes)  # type: ignore[type-var]
    except ValueError as error:
        raise UserError(f"{section}: {error}") from None


def sections(settings: list[str], names: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Sort ``["model.order=2", …]`` into ``{"model": {"order": "2"}, …}``.

    Raises UserError for a setting without ``section.key=value`` form or of an unknown section.
    """
    sorted_settings: dict[str, dict[str, str]] = {name: {} for name in names}
    for text in settings:
        key, equals, value = text.partition("=")
        section, dot, name = key.strip().partition(".")
        if not equals or not dot:
            raise UserError(f"--set {text!r}: write section.key=value, such as model.n_layer=4")
        if section not in sorted_settings:
            raise unknown_name("section of settings", section, names)
        sorted_settings[section][name] = value.strip()
    return sorted_settings
