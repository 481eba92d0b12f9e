"""Registered models and their settings."""

from __future__ import annotations

import dataclasses
from typing import Any

from makemore.models import MODELS
from makemore.settings import CorpusConfig, TrainConfig

READ_ONLY_MODELS = {
    "micrograd": "scalar autograd in one file: makemore/micrograd.py, python -m makemore.micrograd",
}
"""Names and summaries of models to read rather than train."""


def list_models() -> list[dict[str, Any]]:
    """Name and summary of every registered model."""
    return [{"name": name, "summary": MODELS.get(name).summary} for name in MODELS]


def list_read_only_models() -> list[dict[str, str]]:
    """Name and summary of every model to read."""
    return [{"name": name, "summary": summary} for name, summary in READ_ONLY_MODELS.items()]


def settings_for(name: str) -> dict[str, list[dict[str, Any]]]:
    """Name, default and help text of each setting of a model, of training and of the corpus, by section.

    Training defaults apply without a recipe; a model's recipe sets some values by text and budget. Raises
    UserError if the model is unknown.
    """
    sections = {"model": MODELS.get(name).Config, "train": TrainConfig, "corpus": CorpusConfig}
    return {
        section: [
            {"name": f.name, "default": f.default, "help": f.metadata.get("help", "")}
            for f in dataclasses.fields(config)
        ]
        for section, config in sections.items()
    }
