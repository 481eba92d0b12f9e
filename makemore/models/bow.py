"""A causal bag of words: a block whose attention is blind, the plain average of the window, and a
residual layer on top (continuous bag of words: Mikolov et al. 2013, "Efficient Estimation of Word
Representations in Vector Space"). What attention adds to averaging is the distance to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from makemore.models.base import LanguageModel
from makemore.settings import CorpusFacts, Recipe, setting
from makemore.types import State

NOTHING = -1
"""In the state: no token, the document hadn't begun."""


@dataclass(frozen=True)
class BagOfWordsConfig:
    """Settings of ``bow``."""

    block_size: int = setting(8, "tokens averaged")
    n_embd: int = setting(64, "width of a token's embedding")
    n_hidden: int = setting(256, "width of the hidden layer")

    def __post_init__(self) -> None:
        if min(self.block_size, self.n_embd, self.n_hidden) < 1:
            raise ValueError("block_size, n_embd and n_hidden must be at least 1")


class BagOfWords(LanguageModel):
    """The current token, plus the average of the last ``block_size``, however few there are yet."""

    Config: ClassVar[type] = BagOfWordsConfig
    summary = "causal bag of words: a uniform average over the window, one residual layer"
    compiles = False

    def __init__(self, config: BagOfWordsConfig, vocab_size: int, boundary_id: int) -> None:
        super().__init__(config, vocab_size, boundary_id)
        self.max_len = config.block_size
        self.embedding = nn.Embedding(vocab_size, config.n_embd)
        self.up = nn.Linear(config.n_embd, config.n_hidden)
        self.down = nn.Linear(config.n_hidden, config.n_embd)
        self.head = nn.Linear(config.n_embd, vocab_size)
        # A quiet head: the loss at step 0 is ln V.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def init_state(self, batch_size: int, capacity: int) -> State:
        """The window's tokens, (B, block_size - 1) int64, NOTHING where there is none yet."""
        shape = (batch_size, self.config.block_size - 1)
        return (torch.full(shape, NOTHING, device=self.device),)

    def forward(
        self, tokens_BT: Tensor, state: State | None = None, valid_BT: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        length = tokens_BT.shape[1]
        (before,) = self.init_state(len(tokens_BT), length) if state is None else state
        context = torch.cat([before, tokens_BT], dim=1)
        x = self.embedding(context.clamp(min=0))
        average = window_mean(x, context != NOTHING, self.config.block_size)
        x = x[:, before.shape[1] :] + average
        x = x + self.down(torch.tanh(self.up(x)))
        return self.head(x), None if state is None else (context[:, length:],)

    @classmethod
    def recipe(cls, facts: CorpusFacts) -> Recipe:
        return Recipe(BagOfWordsConfig(), cls.base_training(facts, batch_tokens=4096, weight_decay=0.01))


def window_mean(x_BSC: Tensor, exists_BS: Tensor, size: int) -> Tensor:
    """Mean over each window of ``size`` positions, of those that exist: (B, S - size + 1, C)."""
    # Sums of each window by itself, rather than differences of running sums, which lose precision.
    weight_BS1 = exists_BS[..., None].to(x_BSC.dtype)
    total = F.avg_pool1d((x_BSC * weight_BS1).transpose(1, 2), size, stride=1)
    share = F.avg_pool1d(weight_BS1.transpose(1, 2), size, stride=1)
    return (total / share).transpose(1, 2)
