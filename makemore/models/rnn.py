"""Recurrent networks: the plain RNN (Elman 1990; as a language model Mikolov et al. 2010), the GRU
(Cho et al. 2014) and the LSTM (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al.
2000). A hidden vector, carried from token to token, summarises the text so far."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from makemore.models.base import LanguageModel, zero_head
from makemore.models.layers.dropout import Dropout
from makemore.models.scaling import describe_recipe, dropout_for
from makemore.settings import CorpusStats, ModelConfig, Probability, Recipe, Size
from makemore.types import State

TOKENS_PER_SECOND = {"cpu": 35_000.0, "cuda": 1_000_000.0, "mps": 100_000.0}
"""Approximate training speed on running text, by device. On a CPU, a measurement corrects it."""


class RecurrentConfig(ModelConfig):
    """Settings that ``rnn``, ``gru`` and ``lstm`` have in common."""

    n_embd: Size = Field(64, description="embedding width")
    n_hidden: Size = Field(192, description="width of the hidden vector")
    n_layer: Size = Field(1, description="number of stacked recurrent layers")
    dropout: Probability = Field(0.0, description="dropout probability between layers")


class RNNConfig(RecurrentConfig):
    """Settings of ``rnn``."""

    name: Literal["rnn"] = "rnn"


class GRUConfig(RecurrentConfig):
    """Settings of ``gru``."""

    name: Literal["gru"] = "gru"


class LSTMConfig(RecurrentConfig):
    """Settings of ``lstm``."""

    name: Literal["lstm"] = "lstm"


class Recurrent(LanguageModel):
    """Embedding, PyTorch's recurrent layers and head. The state is zero at the start of a document.

    Dropout is applied to the embedding, between layers and before the head, but not between time steps
    (Zaremba et al. 2014).
    """

    Config: ClassVar[type[RecurrentConfig]]
    max_len = None
    supports_compile = False
    layer_type: ClassVar[Callable[..., nn.RNNBase]]
    n_states: ClassVar[int] = 1
    """Number of state tensors: hidden vectors, plus cells in the LSTM."""

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
        self.head = zero_head(config.n_hidden, vocab_size)

    def init_state(self, batch_size: int, capacity: int) -> State:
        """Hidden vectors, plus cells in the LSTM: each (B, n_layer, n_hidden), zeros."""
        shape = (batch_size, self.config.n_layer, self.config.n_hidden)
        return tuple(torch.zeros(shape, device=self.device) for _ in range(self.n_states))

    def forward(
        self, tokens_BT: Tensor, state: State | None = None, valid_BT: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        x_BTC = self.dropout(self.embedding(tokens_BT))
        if state is None:
            hidden_BTH, _ = self.layers(x_BTC)
            return self.exclude_ends(self.head(self.dropout(hidden_BTH)), tokens_BT), None
        # PyTorch's layers expect the batch as the state's second dimension.
        initial = tuple(part.to(x_BTC.dtype).transpose(0, 1).contiguous() for part in state)
        hidden_BTH, final = self.layers(x_BTC, initial if self.n_states > 1 else initial[0])
        parts = final if self.n_states > 1 else (final,)
        logits = self.exclude_ends(self.head(self.dropout(hidden_BTH)), tokens_BT)
        return logits, tuple(part.transpose(0, 1) for part in parts)

    def muon_parameters(self) -> dict[str, int]:
        """Input and recurrent weights, one matrix per gate."""
        gates = len(self.layers.get_parameter("weight_hh_l0")) // self.config.n_hidden
        return {f"layers.{name}": gates for name, p in self.layers.named_parameters() if p.ndim == 2}

    @classmethod
    def recipe(cls, stats: CorpusStats) -> Recipe:
        if stats.mode == "lines":
            return Recipe(cls.Config(dropout=0.1), cls.default_train_config(stats, batch_tokens=4096))
        # Muon halves the steps the recurrent weights need.
        rates = {"lr": 0.012, "matrix_lr": 0.03, "weight_decay": 0.1}
        train = cls.default_train_config(
            stats, loader="streams", batch_tokens=4096, block_size=64, optimizer="muon", **rates
        )
        speed = stats.speed * TOKENS_PER_SECOND[stats.device]
        epochs = stats.tokens(train.data.batch_tokens, speed) / stats.train_tokens
        config = cls.Config(n_hidden=384, dropout=dropout_for(epochs, onset=4.4, slope=0.22))
        reason = describe_recipe(config.n_layer, config.n_hidden, config.dropout, epochs)
        return Recipe(config, train, speed, reason)


class RNN(Recurrent):
    """h_t = tanh(W x_t + U h_{t-1} + b)."""

    summary = "Mikolov et al. 2010: one hidden vector, one tanh per step"
    Config = RNNConfig
    layer_type = nn.RNN


class GRU(Recurrent):
    """h_t = (1 - z) tanh(W x_t + r (U h_{t-1}) + b) + z h_{t-1}, with reset gate r and update gate z."""

    summary = "Cho et al. 2014: hidden vector with reset and update gates"
    Config = GRUConfig
    layer_type = nn.GRU


class LSTM(Recurrent):
    """c_t = f c_{t-1} + i g and h_t = o tanh(c_t), with forget, input and output gates f, i and o."""

    summary = "Hochreiter & Schmidhuber 1997: cells with input, forget and output gates"
    Config = LSTMConfig
    layer_type = nn.LSTM
    n_states = 2

    def __init__(self, config: RecurrentConfig, vocab_size: int, boundary_id: int) -> None:
        super().__init__(config, vocab_size, boundary_id)
        forget = slice(config.n_hidden, 2 * config.n_hidden)
        with torch.no_grad():
            for layer in range(config.n_layer):
                # Forget-gate bias of 1 (Jozefowicz et al. 2015); PyTorch adds the two biases.
                getattr(self.layers, f"bias_ih_l{layer}")[forget] = 1.0
                getattr(self.layers, f"bias_hh_l{layer}")[forget] = 0.0
