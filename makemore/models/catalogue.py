"""Registered models and their settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Union

from pydantic import Field

from makemore.errors import UserError
from makemore.models import MODELS
from makemore.settings import ModelConfig, parse

READ_ONLY_MODELS = {
    "micrograd": "scalar autograd in one file: makemore/micrograd.py, python -m makemore.micrograd",
}
"""Names and summaries of models to read rather than train."""


def parse_model_config(values: Mapping[str, Any] | ModelConfig) -> ModelConfig:
    """Validate a model's settings; ``name`` selects the model.

    Raises UserError for an unknown model, an unknown setting or an invalid value.
    """
    if isinstance(values, ModelConfig):
        return values
    name = values.get("name")
    if not isinstance(name, str):
        raise UserError("model.name is missing; give the name of a model")
    return parse(MODELS.get(name).Config, values, "model")


def any_model_config() -> Any:
    """The type of the settings of any trainable model, for a schema: a union selected by ``name``."""
    kinds = [MODELS.get(name) for name in MODELS]
    configs = tuple(kind.Config for kind in kinds if kind.is_trainable)
    return Annotated[Union[configs], Field(discriminator="name")]  # noqa: UP007
