"""The rungs and their settings, as the registry has them."""

from __future__ import annotations

import dataclasses
from typing import Any

from makemore.models import MODELS


def rungs() -> list[dict[str, Any]]:
    """Name and summary of every registered rung."""
    return [{"name": name, "summary": MODELS.get(name).summary} for name in MODELS]


def settings_of(name: str) -> list[dict[str, Any]]:
    """Name, default and help line of each setting of a rung. Raises UserError if unknown."""
    fields = dataclasses.fields(MODELS.get(name).Config)
    return [{"name": f.name, "default": f.default, "help": f.metadata.get("help", "")} for f in fields]
