"""What differs between the runs of a comparison: settings, data, machine and versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from makemore.runs.schema import RunRecord
from makemore.settings.base import flatten

SEED = "train.seed"
LEFT_OUT = ("model.name", "model.members", "environment.launch", "environment.native")
"""Shown elsewhere, or without an effect on the result."""
ABSENT = "–"


def differing_settings(configs: Sequence[RunRecord]) -> list[str]:
    """Names of settings with different values. A model's settings are compared only among its runs."""
    described = [(config.model.name, dict(described_settings(config))) for config in configs]
    names = dict.fromkeys(name for _, values in described for name in values)
    return [name for name in names if _differs(name, described)]


def _differs(name: str, described: Sequence[tuple[str, Mapping[str, str]]]) -> bool:
    values: dict[str, set[str]] = {}
    for model, settings in described:
        if name in settings:
            values.setdefault(model if name.startswith("model.") else "", set()).add(settings[name])
    return any(len(different) > 1 for different in values.values())


def setting_text(config: RunRecord, name: str) -> str:
    """A setting's value as text; a dash if the run doesn't have it."""
    return dict(described_settings(config)).get(name, ABSENT)


def described_settings(config: RunRecord) -> tuple[tuple[str, str], ...]:
    """Names and values of what may explain a run's result, as text."""
    values = config.model_dump(include={"model", "train", "corpus", "environment", "versions", "init_from"})
    values["text"] = config.text.name
    # The first digits tell texts apart that have the same name.
    values["text.sha256"] = config.text.digests["train"][:8]
    values["members"] = " + ".join(member.run for member in config.mixed) or None
    return tuple((name, _text(value)) for name, value in flatten(values).items() if name not in LEFT_OUT)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return " ".join(map(_text, value))
    return ABSENT if value is None or value == "" else str(value)
