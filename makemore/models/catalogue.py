"""Registered models and their settings."""

from __future__ import annotations

import dataclasses
from typing import Any

from makemore.models import MODELS

READ_ONLY_MODELS = [
    {
        "name": "micrograd",
        "summary": "scalar autograd in one file: makemore/micrograd.py, python -m makemore.micrograd",
    }
]
"""Models to read rather than train."""


def list_models() -> list[dict[str, Any]]:
    """Name and summary of every registered model."""
    return [{"name": name, "summary": MODELS.get(name).summary} for name in MODELS]


def model_settings(name: str) -> list[dict[str, Any]]:
    """Name, default and help text of each setting of a model. Raises UserError if it is unknown."""
    fields = dataclasses.fields(MODELS.get(name).Config)
    return [{"name": f.name, "default": f.default, "help": f.metadata.get("help", "")} for f in fields]
