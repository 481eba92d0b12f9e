"""What may change when a run is resumed, and what that means."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from makemore.errors import UserError
from makemore.settings import TrainConfig, override

_SCHEDULE = "the learning rate follows the new budget from here on, unlike a run begun with it"
_DIGITS = "numbers may differ in their last digits from here on"
CHANGEABLE = {
    "steps": _SCHEDULE,
    "max_time": _SCHEDULE,
    "device": _DIGITS,
    "shard": _DIGITS,
    "patience": "early stopping goes by it from here on",
    "save_interval": "the weights are the same",
    "on_divergence": "it holds from here on",
}
"""Settings of training that a resumed run may be given anew, and what comes of it."""
SURROUNDINGS = ("device", "precision", "compiled", "native", "threads", "processes", "machine")
"""What a run's config says of how it was computed, beside the versions."""


def refuse_changes(saved: Mapping[str, Any], asked: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises UserError for a setting asked for now that the run wasn't begun with.

    ``saved``: the run's settings by section, where changes that may be have been made already.
    """
    for section, kept in saved.items():
        for key, value in asked[section].items():
            # A resolved mode or split is one that ``auto`` could have been.
            if section == "corpus" and value == "auto":
                continue
            if override(kept, {key: value}, section) != kept:
                raise UserError(
                    f"{section}.{key} was {getattr(kept, key)}, not {value}; "
                    "a resumed run keeps its settings (--overwrite begins anew)"
                )


def require_tokenizer(asked: str | None, saved: str) -> None:
    """Raises UserError where another tokenizer is asked for than the run's."""
    if asked not in (None, saved):
        raise UserError(
            f"the run's tokens are {saved}, not {asked}; a resumed run keeps its tokenizer "
            "(--overwrite begins anew)"
        )


def changes(before: Mapping[str, Any], now: Mapping[str, Any], train: TrainConfig) -> list[str]:
    """A line for each change from the config of a run to what goes on now, with what it means."""
    was = before["train"]
    lines = [
        f"train.{name}: {was.get(name)} -> {value}; {CHANGEABLE[name]}"
        for name, value in dataclasses.asdict(train).items()
        if name in CHANGEABLE and name in was and was[name] != value
    ]
    lines += [
        f"{name}: {before.get(name)} -> {now[name]}; {_DIGITS}"
        for name in SURROUNDINGS
        if before.get(name) != now[name]
    ]
    versions = before.get("versions")
    versions = versions if isinstance(versions, dict) else {}
    return lines + [
        f"{name} {versions.get(name)} -> {version}; {_DIGITS}"
        for name, version in now["versions"].items()
        if versions.get(name) != version
    ]
