"""Settings that may change when a run is resumed, and the effect of each change."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from makemore.errors import UserError
from makemore.settings import TrainConfig, current_name, replace_settings

_SCHEDULE = "from here on the learning rate follows the new budget, unlike in a run started with it"
_ROUNDING = "results may differ by rounding from here on"
RESUMABLE_CHANGES = {
    "steps": _SCHEDULE,
    "max_time": _SCHEDULE,
    "device": _ROUNDING,
    "shard": _ROUNDING,
    "patience": "early stopping uses the new value from here on",
    "save_interval": "the weights are not affected",
    "on_divergence": "applies from here on",
}
"""Training settings that may change on resume, and the effect of each change."""
ENVIRONMENT_KEYS = ("device", "precision", "compiled", "native", "threads", "processes", "machine")
"""Keys of a run's config that describe its environment, besides ``versions``."""


def require_same_settings(saved: Mapping[str, Any], asked: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise UserError if a requested setting differs from the run's.

    ``saved`` holds the run's settings by section, with permitted changes already applied.
    """
    for section, settings in saved.items():
        for key, value in asked[section].items():
            # ``auto`` agrees with any mode or split it could have resolved to.
            if section == "corpus" and value == "auto":
                continue
            if replace_settings(settings, {key: value}, section) != settings:
                raise UserError(
                    f"{section}.{key} was {getattr(settings, current_name(section, key))}, not {value}; "
                    "a resumed run keeps its settings (use --overwrite to start a new run)"
                )


def require_same_tokenizer(asked: str | None, saved: str) -> None:
    """Raise UserError if a tokenizer other than the run's is requested."""
    if asked not in (None, saved):
        raise UserError(
            f"the run's tokenizer is {saved}, not {asked}; a resumed run keeps its tokenizer "
            "(use --overwrite to start a new run)"
        )


def describe_changes(before: Mapping[str, Any], now: Mapping[str, Any], train: TrainConfig) -> list[str]:
    """Describe each change from a run's saved config to the current one, with its effect, one line each."""
    saved = before["train"]
    lines = [
        f"train.{name}: {saved.get(name)} -> {value}; {RESUMABLE_CHANGES[name]}"
        for name, value in dataclasses.asdict(train).items()
        if name in RESUMABLE_CHANGES and name in saved and saved[name] != value
    ]
    lines += [
        f"{name}: {before.get(name)} -> {now[name]}; {_ROUNDING}"
        for name in ENVIRONMENT_KEYS
        if before.get(name) != now[name]
    ]
    versions = before.get("versions")
    versions = versions if isinstance(versions, dict) else {}
    return lines + [
        f"{name} {versions.get(name)} -> {version}; {_ROUNDING}"
        for name, version in now["versions"].items()
        if versions.get(name) != version
    ]
