"""The neural probabilistic language model (Bengio et al. 2003, "A Neural Probabilistic Language
Model"): concatenated embeddings of the last few tokens, through tanh layers to next-token logits."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from makemore.models.base import LanguageModel, zero_head
from makemore.models.layers.dropout import Dropout
from makemore.models.layers.windows import token_windows
from makemore.settings import ModelConfig, Probability, Size
from makemore.types import State


class MLPConfig(ModelConfig):
    """Settings of ``mlp``."""

    name: Literal["mlp"] = "mlp"
    block_size: Size = Field(8, description="context length in tokens")
    n_embd: Size = Field(32, description="embedding width")
    n_hidden: Size = Field(512, description="width of each hidden layer")
    n_layer: Size = Field(1, description="number of hidden layers")
    dropout: Probability = Field(0.0, description="dropout probability of hidden units")


class MLP(LanguageModel):
    """MLP over the last ``block_size`` tokens, padded with boundary tokens before a document."""

    Config: ClassVar[type[MLPConfig]] = MLPConfig
    supports_packing = True
    summary = "Bengio et al. 2003: embeddings of a fixed window, tanh layers"
    supports_compile = False
    train_defaults = {"batch_tokens": 4096, "weight_decay": 0.01}

    def __init__(self, config: MLPConfig, vocab_size: int, boundary_id: int) -> None:
        super().__init__(config, vocab_size, boundary_id)
        self.max_len = config.block_size
        self.embedding = nn.Embedding(vocab_size, config.n_embd)
        widths = [config.block_size * config.n_embd] + [config.n_hidden] * config.n_layer
        layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
        self.hidden = nn.ModuleList(layers)
        self.dropout = Dropout(config.dropout)
        self.head = zero_head(config.n_hidden, vocab_size)
        for layer in layers:
            # Kaiming initialisation with tanh's gain keeps the units out of saturation.
            nn.init.normal_(layer.weight, std=5 / 3 / math.sqrt(layer.in_features))
            nn.init.zeros_(layer.bias)
        # Running text has a single boundary token: its barely trained embedding should be neutral.
        nn.init.zeros_(self.embedding.weight[boundary_id])

    def init_state(self, batch_size: int, capacity: int) -> State:
        """The last block_size - 1 tokens, (B, block_size - 1) int64."""
        shape = (batch_size, self.config.block_size - 1)
        return (torch.full(shape, self.boundary_id, device=self.device),)

    def forward(
        self, tokens_BT: Tensor, state: State | None = None, valid_BT: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        windows_BTK, new_state = token_windows(tokens_BT, state, self.config.block_size, self.boundary_id)
        hidden = self.embedding(windows_BTK).flatten(2)
        for layer in self.hidden:
            hidden = self.dropout(torch.tanh(layer(hidden)))
        return self.exclude_ends(self.head(hidden), tokens_BT), new_state
