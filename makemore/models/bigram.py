"""The neural bigram: the logits are a one-hot token times a V x V weight matrix.

At its optimum it equals the count bigram; penalising the squared weights pulls it towards the
uniform distribution, as additive smoothing does for counts.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from makemore.models.base import LanguageModel
from makemore.settings import CorpusStats, ModelConfig, NonNegative, Recipe
from makemore.types import State


class BigramConfig(ModelConfig):
    """Settings of ``bigram``."""

    name: Literal["bigram"] = "bigram"
    weight_penalty: NonNegative = Field(0.0, description="coefficient of the mean squared weight in the loss")


class Bigram(LanguageModel):
    """``logits = onehot(token) @ W``, computed by looking up a row of W."""

    Config: ClassVar[type[BigramConfig]] = BigramConfig
    summary = "neural bigram: one-hot token times a weight matrix"
    supports_compile = False
    supports_packing = True
    max_len = 1

    def __init__(self, config: BigramConfig, vocab_size: int, boundary_id: int) -> None:
        super().__init__(config, vocab_size, boundary_id)
        # Zero weights: uniform predictions, so the loss at step 0 is ln V.
        self.W = nn.Parameter(torch.zeros(vocab_size, vocab_size))

    def init_state(self, batch_size: int, capacity: int) -> State:
        return ()

    def forward(
        self, tokens_BT: Tensor, state: State | None = None, valid_BT: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        return self.exclude_ends(nn.functional.embedding(tokens_BT, self.W), tokens_BT), state

    def regularization_loss(self) -> Tensor | None:
        return self.config.weight_penalty * self.W.square().mean() if self.config.weight_penalty else None

    @classmethod
    def recipe(cls, stats: CorpusStats) -> Recipe:
        # Convex and tiny: large batches, and a learning rate high enough for the rarest pairs.
        train = cls.default_train_config(
            stats, batch_tokens=16384, lr=0.1, beta2=0.999, clip=0.0, warmdown_fraction=0.8, warmup_steps=0
        )
        return Recipe(BigramConfig(), train)
