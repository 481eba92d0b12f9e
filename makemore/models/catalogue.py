"""The rungs and their settings, as the registry has them."""

from __future__ import annotations

import dataclasses
from typing import Any

from makemore.models import MODELS

TO_READ = [
    {
        "name": "micrograd",
        "summary": "scalar autograd in one file: makemore/micrograd.py, python -m makemore.micrograd",
    }
]
"""Rungs that are there to be read rather than trained."""


def rungs() -> list[dict[str, Any]]:
    """Name and summary of every registered rung."""
    return [{"name": name, "summary": MODELS.get(name).summary} for name in MODELS]


def settings_of(name: str) -> list[dict[str, Any]]:
    """Name, default and help line of each setting of a rung. Raises UserError if unknown."""
    fields = dataclasses.fields(MODELS.get(name).Config)
    return [{"name": f.name, "default": f.default, "help": f.metadata.get("help", "")} for f in fields]
