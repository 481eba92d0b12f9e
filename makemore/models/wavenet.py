"""WaveNet (van den Oord et al. 2016, "WaveNet: A Generative Model for Raw Audio") over tokens.

``tree``: windows of ``block_size`` tokens fused pair by pair, level by level, each with a linear layer,
batch normalisation and tanh. ``gated``: the paper's residual blocks, tanh filter times sigmoid gate, with
skip connections. Both are dilated causal convolutions: level l combines positions t - 2**l and t,
and no position is computed twice.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from makemore.models.base import LanguageModel, zero_head
from makemore.models.layers.batchnorm import BatchNorm
from makemore.models.layers.dropout import Dropout
from makemore.settings import CorpusStats, ModelConfig, Probability, Recipe, Size
from makemore.types import State


class WaveNetConfig(ModelConfig):
    """Settings of ``wavenet``."""

    name: Literal["wavenet"] = "wavenet"
    block_size: int = Field(8, description="context length in tokens, a power of two", ge=2)
    n_embd: Size = Field(24, description="embedding width; in gated style also the residual width")
    n_hidden: Size = Field(128, description="width of each level; in gated style of filter, gate and skip")
    dropout: Probability = Field(0.0, description="dropout probability of each level's output")
    style: Literal["tree", "gated"] = Field(
        "tree", description="tree of fused pairs, or the gated blocks of WaveNet"
    )

    @field_validator("block_size")
    @classmethod
    def _check_power_of_two(cls, size: int) -> int:
        if size & (size - 1):
            raise ValueError("must be a power of two")
        return size


class Fusion(nn.Module):
    """Fuses a pair into one vector, tanh(BatchNorm(W pair)), the only input of the next level."""

    def __init__(self, width: int, n_hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * width, n_hidden, bias=False)
        self.norm = BatchNorm(n_hidden)

    def forward(self, x_BTC: Tensor, pair_BTC: Tensor, valid_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        fused_BTH = torch.tanh(self.norm(self.linear(pair_BTC), valid_BT))
        return fused_BTH, fused_BTH


class GatedBlock(nn.Module):
    """Gated block (van den Oord et al. 2016): tanh filter times sigmoid gate; residual and skip outputs."""

    def __init__(self, width: int, n_hidden: int, last: bool) -> None:
        super().__init__()
        self.filter_gate = nn.Linear(2 * width, 2 * n_hidden)
        self.skip = nn.Linear(n_hidden, n_hidden)
        # Nothing reads the last block's residual stream.
        self.residual = nn.Identity() if last else nn.Linear(n_hidden, width)
        self.last = last

    def forward(self, x_BTC: Tensor, pair_BTC: Tensor, valid_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        filter_BTH, gate_BTH = self.filter_gate(pair_BTC).chunk(2, dim=-1)
        z_BTH = torch.tanh(filter_BTH) * torch.sigmoid(gate_BTH)
        return x_BTC if self.last else x_BTC + self.residual(z_BTH), self.skip(z_BTH)


class WaveNet(LanguageModel):
    """WaveNet over the last ``block_size`` tokens, padded with boundary tokens before a document."""

    Config: ClassVar[type[WaveNetConfig]] = WaveNetConfig
    summary = "van den Oord et al. 2016: dilated causal convolutions, a tree of fused pairs"

    def __init__(self, config: WaveNetConfig, vocab_size: int, boundary_id: int) -> None:
        super().__init__(config, vocab_size, boundary_id)
        self.max_len = config.block_size
        n_levels = config.block_size.bit_length() - 1
        self.dilations = [2**level for level in range(n_levels)]
        self.embedding = nn.Embedding(vocab_size, config.n_embd)
        self.dropout = Dropout(config.dropout)
        self.levels = nn.ModuleList(self._level(i, i == n_levels - 1) for i in range(n_levels))
        self.mix = nn.Linear(config.n_hidden, config.n_hidden) if config.style == "gated" else None
        self.head = zero_head(config.n_hidden, vocab_size)

    def _level(self, index: int, last: bool) -> nn.Module:
        n_embd, n_hidden = self.config.n_embd, self.config.n_hidden
        if self.config.style == "gated":
            return GatedBlock(n_embd, n_hidden, last)
        return Fusion(n_hidden if index else n_embd, n_hidden)

    @torch.no_grad()
    def init_state(self, batch_size: int, capacity: int) -> State:
        """One queue per level, (B, 2**level, C): the level's last inputs, oldest first.

        Before a document every token is the boundary, so a queue repeats a single vector: the level's
        input for an endless sequence of boundary tokens.
        """
        training = self.training
        self.eval()  # a single token has no batch statistics
        boundary = torch.full((1, 1), self.boundary_id, device=self.device)
        _, queues = self._run(boundary, None, None)
        self.train(training)
        return tuple(queue.repeat(batch_size, 1, 1) for queue in queues)

    def _run(self, tokens_BT: Tensor, state: State | None, valid_BT: Tensor | None) -> tuple[Tensor, State]:
        """Output of the levels, (B, T, n_hidden), and their queues after the last token.

        Without a state the first token must be the boundary, which also pads the positions before it.
        """
        length = tokens_BT.shape[1]
        x = self.dropout(self.embedding(tokens_BT))
        skips, queues = [], []
        for i, (level, dilation) in enumerate(zip(self.levels, self.dilations, strict=True)):
            queue = x[:, :1].expand(-1, dilation, -1) if state is None else state[i]
            context = torch.cat([queue, x], dim=1)
            queues.append(context[:, length:])
            pair = torch.cat([context[:, :length], x], dim=-1)
            x, skip = level(x, pair, valid_BT)
            x = self.dropout(x)
            skips.append(skip)
        if self.mix is None:
            return x, tuple(queues)
        return self.dropout(F.relu(self.mix(F.relu(sum(skips))))), tuple(queues)

    def forward(
        self, tokens_BT: Tensor, state: State | None = None, valid_BT: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        if state is not None:
            hidden, queues = self._run(tokens_BT, state, valid_BT)
            return self.exclude_ends(self.head(hidden), tokens_BT), queues
        # An extra boundary token provides the context before the document; batch statistics ignore it.
        tokens = F.pad(tokens_BT, (1, 0), value=self.boundary_id)
        real = torch.ones_like(tokens_BT, dtype=torch.bool) if valid_BT is None else valid_BT
        hidden, _ = self._run(tokens, None, F.pad(real, (1, 0), value=False))
        return self.exclude_ends(self.head(hidden[:, 1:]), tokens_BT), None

    @classmethod
    def recipe(cls, stats: CorpusStats) -> Recipe:
        if stats.mode == "lines":
            return Recipe(
                WaveNetConfig(), cls.default_train_config(stats, optimizer="muon", batch_tokens=2048)
            )
        train = cls.default_train_config(stats, loader="streams", batch_tokens=2048, block_size=64)
        return Recipe(WaveNetConfig(block_size=32, n_embd=64, n_hidden=256), train)
