"""A causal bag of words: the mean embedding of a window and a residual layer (continuous bag of words:
Mikolov et al. 2013, "Efficient Estimation of Word Representations in Vector Space"). The mean is attention
with uniform weights, so comparing with a transformer shows what attention adds."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from makemore.models.base import LanguageModel, zero_head
from makemore.settings import ModelConfig, Size
from makemore.types import State

NO_TOKEN = -1
"""Marks positions before the start of the document in the state."""


class BagOfWordsConfig(ModelConfig):
    """Settings of ``bow``."""

    name: Literal["bow"] = "bow"
    block_size: Size = Field(8, description="number of tokens averaged")
    n_embd: Size = Field(64, description="embedding width")
    n_hidden: Size = Field(256, description="width of the hidden layer")


class BagOfWords(LanguageModel):
    """The current embedding plus the mean of the last ``block_size`` embeddings (fewer early on)."""

    Config: ClassVar[type[BagOfWordsConfig]] = BagOfWordsConfig
    summary = "causal bag of words: uniform average over a window, one residual layer"
    supports_compile = False
    train_defaults = {"batch_tokens": 4096, "weight_decay": 0.01}

    def __init__(self, config: BagOfWordsConfig, vocab_size: int, boundary_id: int) -> None:
        super().__init__(config, vocab_size, boundary_id)
        self.max_len = config.block_size
        self.embedding = nn.Embedding(vocab_size, config.n_embd)
        self.up = nn.Linear(config.n_embd, config.n_hidden)
        self.down = nn.Linear(config.n_hidden, config.n_embd)
        self.head = zero_head(config.n_embd, vocab_size)

    def init_state(self, batch_size: int, capacity: int) -> State:
        """The last block_size - 1 tokens, (B, block_size - 1) int64, NO_TOKEN before the document."""
        shape = (batch_size, self.config.block_size - 1)
        return (torch.full(shape, NO_TOKEN, device=self.device),)

    def forward(
        self, tokens_BT: Tensor, state: State | None = None, valid_BT: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        length = tokens_BT.shape[1]
        (past,) = self.init_state(len(tokens_BT), length) if state is None else state
        context = torch.cat([past, tokens_BT], dim=1)
        x = self.embedding(context.clamp(min=0))
        mean = window_mean(x, context != NO_TOKEN, self.config.block_size)
        x = x[:, past.shape[1] :] + mean
        x = x + self.down(torch.tanh(self.up(x)))
        logits = self.exclude_ends(self.head(x), tokens_BT)
        return logits, None if state is None else (context[:, length:],)


def window_mean(x_BSC: Tensor, exists_BS: Tensor, size: int) -> Tensor:
    """Mean over the existing positions of each window of ``size`` positions, (B, S - size + 1, C)."""
    # Each window is summed separately: differences of running sums lose precision.
    weight_BS1 = exists_BS[..., None].to(x_BSC.dtype)
    total = F.avg_pool1d((x_BSC * weight_BS1).transpose(1, 2), size, stride=1)
    fraction = F.avg_pool1d(weight_BS1.transpose(1, 2), size, stride=1)
    return (total / fraction).transpose(1, 2)
