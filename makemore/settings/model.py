"""Settings of models, and the recipes that choose them for a text and budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from makemore.settings.base import Settings
from makemore.settings.train import TrainConfig


class ModelConfig(Settings):
    """Base class of the settings of models. Each has ``name: Literal["NAME"] = "NAME"``, which selects it."""

    main: ClassVar[str] = "name"
    aliases: ClassVar[Mapping[str, str]] = {
        "context_length": "block_size",
        "n_heads": "n_head",
        "n_layers": "n_layer",
        "num_heads": "n_head",
        "num_layers": "n_layer",
    }
    legacy_defaults: ClassVar[Mapping[str, Any]] = {}
    """Values, by setting, for runs that were saved before the setting existed."""
    name: str = ""


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
    speed: float = 1.0
    """This machine's training speed, divided by the speed that the recipe assumes."""

    def tokens(self, batch_tokens: int, tokens_per_second: float) -> float:
        """Estimate of the number of tokens trained on within the budget."""
        by_steps = math.inf if self.steps is None else self.steps * batch_tokens
        by_time = math.inf if self.max_time is None else self.max_time * tokens_per_second
        return min(by_steps, by_time)


@dataclass(frozen=True)
class Recipe:
    """Model settings (the model's ``Config``) and training settings."""

    model: ModelConfig
    train: TrainConfig
    tokens_per_second: float | None = None
    """Training speed that the choices are based on; None if they don't depend on it."""
    reason: str = ""
    """What was chosen, and for which budget, in one line."""
