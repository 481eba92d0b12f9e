"""Recurrent networks: the plain RNN (Elman 1990; as a language model Mikolov et al. 2010), the GRU
(Cho et al. 2014) and the LSTM (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al.
2000): what has been read so far lives in a hidden vector that is carried from token to token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from makemore.models.base import LanguageModel
from makemore.models.layers.dropout import Dropout
from makemore.settings import CorpusFacts, Recipe, setting
from makemore.types import State

TOKENS_A_SECOND = {"cpu": 35_000.0, "cuda": 1_000_000.0, "mps": 100_000.0}
"""Rough speed of training on running text."""


@dataclass(frozen=True)
class RecurrentConfig:
    """Settings of ``rnn``, ``gru`` and ``lstm``."""

    n_embd: int = setting(64, "width of a token's embedding")
    n_hidden: int = setting(192, "width of the hidden vector")
    n_layer: int = setting(1, "recurrent layers, each reading the one below")
    dropout: float = setting(0.0, "share of units dropped between layers in training")

    def __post_init__(self) -> None:
        if min(self.n_embd, self.n_hidden, self.n_layer) < 1:
            raise ValueError("n_embd, n_hidden and n_layer must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError("dropout must be at least 0 and below 1")


class Recurrent(LanguageModel):
    """Embedding, PyTorch's recurrent layers, head. Zero state stands before a document's start.

    Dropout is on the embedding, between layers and before the head, never on the way through time
    (Zaremba et al. 2014).
    """

    Config: ClassVar[type] = RecurrentConfig
    max_len = None
    compiles = False
    layer_type: ClassVar[Callable[..., nn.RNNBase]]
    n_states: ClassVar[int] = 1
    """Tensors of state: the hidden vectors, and the cells where there are any."""

    def __init__(self, config: RecurrentConfig, vocab_size: int, boundary_id: int) -> None:
        super().__init__(config, vocab_size, boundary_id)
        self.embedding = nn.Embedding(vocab_size, config.n_embd)
        self.layers = self.layer_type(
            config.n_embd,
            config.n_hidden,
            config.n_layer,
            batch_first=True,
            dropout=config.dropout if config.n_layer > 1 else 0.0,
        )
        self.dropout = Dropout(config.dropout)
        self.head = nn.Linear(config.n_hidden, vocab_size)
        # A quiet head: the loss at step 0 is ln V.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def init_state(self, batch_size: int, capacity: int) -> State:
        """Hidden vectors, and cells where there are any: each (B, n_layer, n_hidden), zeros."""
        shape = (batch_size, self.config.n_layer, self.config.n_hidden)
        return tuple(torch.zeros(shape, device=self.device) for _ in range(self.n_states))

    def forward(
        self, tokens_BT: Tensor, state: State | None = None, valid_BT: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        x_BTC = self.dropout(self.embedding(tokens_BT))
        if state is None:
            hidden_BTH, _ = self.layers(x_BTC)
            return self.head(self.dropout(hidden_BTH)), None
        # PyTorch's layers have the batch second in their state.
        before = tuple(part.to(x_BTC.dtype).transpose(0, 1).contiguous() for part in state)
        hidden_BTH, after = self.layers(x_BTC, before if self.n_states > 1 else before[0])
        parts = after if self.n_states > 1 else (after,)
        return self.head(self.dropout(hidden_BTH)), tuple(part.transpose(0, 1) for part in parts)

    def hidden_matrices(self) -> dict[str, int]:
        """Input and recurrent weights, a matrix a gate."""
        gates = len(self.layers.get_parameter("weight_hh_l0")) // self.config.n_hidden
        return {f"layers.{name}": gates for name, p in self.layers.named_parameters() if p.ndim == 2}

    @classmethod
    def recipe(cls, facts: CorpusFacts) -> Recipe:
        if facts.mode == "lines":
            return Recipe(RecurrentConfig(dropout=0.1), cls.base_training(facts, batch_tokens=4096))
        # Muon halves the steps that the recurrent weights need; dropout pays once text is read again.
        train = cls.base_training(
            facts,
            loader="streams",
            batch_tokens=4096,
            block_size=64,
            optimizer="muon",
            lr=0.012,
            matrix_lr=0.03,
            weight_decay=0.1,
        )
        passes = facts.tokens(train.batch_tokens, TOKENS_A_SECOND[facts.device]) / facts.train_tokens
        return Recipe(RecurrentConfig(n_hidden=384, dropout=0.1 if passes > 4 else 0.0), train)


class RNN(Recurrent):
    """h_t = tanh(W x_t + U h_{t-1} + b)."""

    summary = "Mikolov et al. 2010: one hidden vector, a tanh a step"
    layer_type = nn.RNN


class GRU(Recurrent):
    """Gates choose how much of the hidden vector to reset and how much to keep."""

    summary = "Cho et al. 2014: a hidden vector behind reset and update gates"
    layer_type = nn.GRU


class LSTM(Recurrent):
    """Cells c_t = f c_{t-1} + i g, read through a gate: h_t = o tanh(c_t)."""

    summary = "Hochreiter & Schmidhuber 1997: cells behind input, forget and output gates"
    layer_type = nn.LSTM
    n_states = 2

    def __init__(self, config: RecurrentConfig, vocab_size: int, boundary_id: int) -> None:
        super().__init__(config, vocab_size, boundary_id)
        forget = slice(config.n_hidden, 2 * config.n_hidden)
        with torch.no_grad():
            for layer in range(config.n_layer):
                # Open forget gates (Jozefowicz et al. 2015); PyTorch adds the two biases.
                getattr(self.layers, f"bias_ih_l{layer}")[forget] = 1.0
                getattr(self.layers, f"bias_hh_l{layer}")[forget] = 0.0
