"""The decoder-only transformer (Vaswani et al. 2017; Radford et al. 2019), in two styles.

``modern``: parameter-free RMSNorm (Zhang & Sennrich 2019), rotary positions (Su et al. 2021),
query-key norm (Henry et al. 2020), squared ReLU and short convolutions (So et al. 2021; Allen-Zhu
2025), no biases, untied head, output projections that start at zero. ``gpt2``: LayerNorm, learned
positions, GELU, biases, tied head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from makemore.models.base import LanguageModel
from makemore.models.layers.attention import (
    attend,
    rotary_table,
    rotate,
    visible_bias,
    write_cache,
)
from makemore.models.layers.convolution import ShortConv
from makemore.models.layers.dropout import Dropout, compile_options
from makemore.models.layers.norms import rms_norm
from makemore.settings import CorpusFacts, Recipe, setting
from makemore.types import State

WIDTHS = (64, 96, 128, 192, 256, 384, 512, 768)
FLOPS = {"cpu": 2.2e11, "cuda": 2e13, "mps": 1e12}
"""Rough operations a second that training small models gets out of a device."""
DROPOUTS = ((100, 0.4), (30, 0.2))
"""By passes over the text that the budget has room for: the more often it is seen, the more is dropped."""
TOKENS_A_WEIGHT = 5
"""To train on. Large models are best off with 20; small ones on characters were with fewer."""


@dataclass(frozen=True)
class TransformerConfig:
    """Settings of ``transformer``."""

    block_size: int = setting(128, "longest context in tokens")
    n_layer: int = setting(4, "blocks")
    n_head: int = setting(4, "attention heads")
    n_embd: int = setting(128, "width")
    dropout: float = setting(0.0, "share of activations dropped in training")
    style: Literal["modern", "gpt2"] = setting("modern", "modern, or GPT-2 as nanoGPT has it")
    conv: int = setting(4, "tokens that the modern style's short convolutions mix (1: none)")
    tie: bool = setting(True, "the GPT-2 style's head and embedding are one matrix")

    def __post_init__(self) -> None:
        if min(self.block_size, self.n_layer, self.n_head, self.n_embd, self.conv) < 1:
            raise ValueError("block_size, n_layer, n_head, n_embd and conv must be at least 1")
        if self.n_embd % (2 * self.n_head):
            raise ValueError(f"n_embd must be a multiple of 2 x n_head ({2 * self.n_head})")
        if not 0 <= self.dropout < 1:
            raise ValueError("dropout must be at least 0 and below 1")

    @property
    def has_conv(self) -> bool:
        return self.style == "modern" and self.conv > 1


class RMSNorm(nn.Module):
    """Parameter-free, so that a block reads the same in both styles."""

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x)


def make_norm(config: TransformerConfig) -> nn.Module:
    return nn.LayerNorm(config.n_embd) if config.style == "gpt2" else RMSNorm()


@dataclass(frozen=True)
class Place:
    """Where the queries of one call stand: shared by every layer."""

    bias: Tensor | None
    """Added to attention scores, broadcast to (B, H, T, S); None: causal, nothing else hidden."""
    rotary: tuple[Tensor, Tensor] | None
    position_B: Tensor | None
    """First position of the call in the cache; None without a cache."""
    index_BT: Tensor
    """Position of each token in its document, broadcast to (B, T)."""
    start_BT: Tensor | None
    """Position at which each token's document begins; None where each row is one document."""


class Attention(nn.Module):
    """Multi-head causal self-attention."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.modern = config.style == "modern"
        self.dropout = config.dropout
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=not self.modern)
        self.out = nn.Linear(config.n_embd, config.n_embd, bias=not self.modern)

    def forward(self, x_BTC: Tensor, place: Place, cache: tuple[Tensor, Tensor] | None) -> Tensor:
        batch, length, width = x_BTC.shape
        qkv = self.qkv(x_BTC).view(batch, length, 3, self.n_head, width // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if place.rotary is not None:
            q, k = rotate(rms_norm(q), *place.rotary), rotate(rms_norm(k), *place.rotary)
        if cache is not None and place.position_B is not None:
            write_cache(cache[0], k, place.position_B)
            write_cache(cache[1], v, place.position_B)
            k, v = cache[0].to(q.dtype), cache[1].to(q.dtype)
        mixed = attend(q, k, v, place.bias, self.dropout if self.training else 0.0)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    """Two layers, four times wider inside."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.modern = config.style == "modern"
        self.up = nn.Linear(config.n_embd, 4 * config.n_embd, bias=not self.modern)
        self.down = nn.Linear(4 * config.n_embd, config.n_embd, bias=not self.modern)

    def forward(self, x_BTC: Tensor) -> Tensor:
        h = self.up(x_BTC)
        return self.down(F.relu(h) * F.relu(h) if self.modern else F.gelu(h, approximate="tanh"))


class Block(nn.Module):
    """Pre-norm residual block: attention, then the feed-forward layers, a short convolution before
    each."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = make_norm(config), make_norm(config)
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.dropout = Dropout(config.dropout)
        convs = [ShortConv(config.conv, config.n_embd) for _ in range(2)] if config.has_conv else []
        self.convs = nn.ModuleList(convs)

    def forward(self, x_BTC: Tensor, place: Place, state: State | None) -> tuple[Tensor, State]:
        """Output and the next state: keys, values and the convolutions' tails."""
        cache = None if state is None else (state[0], state[1])
        h_BTC, tail1 = self._mix(0, self.norm1(x_BTC), place, state)
        x_BTC = x_BTC + self.dropout(self.attention(h_BTC, place, cache))
        h_BTC, tail2 = self._mix(1, self.norm2(x_BTC), place, state)
        x_BTC = x_BTC + self.dropout(self.feed_forward(h_BTC))
        return x_BTC, (*(cache or ()), *tail1, *tail2)

    def _mix(self, nth: int, x_BTC: Tensor, place: Place, state: State | None) -> tuple[Tensor, State]:
        if not self.convs:
            return x_BTC, ()
        tail_BKC = None if state is None else state[2 + nth]
        index_BT = None if place.start_BT is None else place.index_BT
        mixed, tail = self.convs[nth](x_BTC, index_BT, tail_BKC)
        return mixed, (tail if tail_BKC is None else tail.to(tail_BKC.dtype),)


class Transformer(LanguageModel):
    """Looks at up to ``block_size`` tokens; its state is every layer's keys, values and tails."""

    Config: ClassVar[type] = TransformerConfig
    summary = "decoder-only transformer, modern or GPT-2 style"
    streams = False
    packs = True
    cos: Tensor
    sin: Tensor

    def __init__(self, config: TransformerConfig, vocab_size: int, boundary_id: int) -> None:
        super().__init__(config, vocab_size, boundary_id)
        self.max_len = config.block_size
        self.embedding = nn.Embedding(vocab_size, config.n_embd)
        self.dropout = Dropout(config.dropout)
        blocks = [Block(config) for _ in range(config.n_layer)]
        self.blocks = nn.ModuleList(blocks)
        self._compiled_block: Callable[..., tuple[Tensor, State]] | None = None
        self.norm = make_norm(config)
        self.head = nn.Linear(config.n_embd, vocab_size, bias=False)
        self.positions: nn.Embedding | None = None
        if config.style == "gpt2":
            self.positions = nn.Embedding(config.block_size, config.n_embd)
            self._init_gpt2(blocks)
        else:
            cos, sin = rotary_table(config.block_size, config.n_embd // config.n_head)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
            self._init_modern(blocks)

    def compile_parts(self, wanted: bool = True) -> bool:
        # One block is compiled for all, in a quarter of the time that four take and hardly less fast.
        options = compile_options(self.device)
        self._compiled_block = torch.compile(Block.__call__, options=options) if wanted else None
        return True

    def _init_gpt2(self, blocks: list[Block]) -> None:
        if self.config.tie:
            self.head.weight = self.embedding.weight
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for block in blocks:
            for layer in (block.attention.out, block.feed_forward.down):
                nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * self.config.n_layer))

    def _init_modern(self, blocks: list[Block]) -> None:
        nn.init.normal_(self.embedding.weight)
        nn.init.zeros_(self.head.weight)
        for block in blocks:
            for layer in (block.attention.qkv, block.feed_forward.up):
                nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features))
            nn.init.zeros_(block.attention.out.weight)
            nn.init.zeros_(block.feed_forward.down.weight)

    def init_state(self, batch_size: int, capacity: int) -> State:
        """Position and the document's start, each (B,) int64; then of each layer keys and values,
        (B, H, capacity, D), and the last inputs of its convolutions, (B, conv - 1, C)."""
        config, device = self.config, self.device
        room = min(capacity, config.block_size)
        cache = (batch_size, config.n_head, room, config.n_embd // config.n_head)
        tail = (batch_size, config.conv - 1, config.n_embd)
        shapes = [cache, cache, *([tail, tail] if config.has_conv else [])] * config.n_layer
        places = [torch.zeros(batch_size, dtype=torch.int64, device=device) for _ in range(2)]
        return (*places, *(torch.zeros(shape, device=device) for shape in shapes))

    def _place(self, tokens_BT: Tensor, state: State | None) -> Place:
        """Where a call's tokens stand: a boundary begins a document, before which nothing is seen."""
        batch, length = tokens_BT.shape
        position_BT = torch.arange(length, device=tokens_BT.device).expand(batch, -1)
        if state is None and self.one_document:
            return Place(None, self._rotary(position_BT[:1]), None, position_BT[:1], None)
        first_B = None if state is None else state[0]
        if first_B is not None:
            position_BT = position_BT + first_B[:, None]
        start_BT = torch.where(tokens_BT == self.boundary_id, position_BT, 0)
        if state is not None:
            start_BT = torch.maximum(start_BT, state[1][:, None])
        start_BT = start_BT.cummax(dim=1).values
        bias = visible_bias(position_BT, start_BT, length if state is None else state[2].shape[2])
        return Place(bias, self._rotary(position_BT), first_B, position_BT - start_BT, start_BT)

    def _rotary(self, position_BT: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.positions is not None:
            return None
        return self.cos[position_BT][:, None], self.sin[position_BT][:, None]

    def forward(
        self, tokens_BT: Tensor, state: State | None = None, valid_BT: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        """Raises ValueError for more than ``block_size`` tokens; a state must have room for them."""
        length = tokens_BT.shape[1]
        if length > self.config.block_size:
            raise ValueError(f"{length} tokens pass the context of {self.config.block_size}")
        place = self._place(tokens_BT, state)
        x = self.embedding(tokens_BT)
        x = rms_norm(x) if self.positions is None else x + self.positions(place.index_BT)
        x = self.dropout(x)
        after: list[Tensor] = []
        size = 4 if self.config.has_conv else 2
        call = self._compiled_block if self.training and self._compiled_block else Block.__call__
        for i, block in enumerate(self.blocks):
            part = None if state is None else state[2 + size * i : 2 + size * (i + 1)]
            x, part = call(block, x, place, part)
            after.extend(part)
        logits = self.head(self.norm(x))
        if state is None or place.start_BT is None:
            return logits, None
        return logits, (state[0] + length, place.start_BT[:, -1], *after)

    def roll(self, state: State, keep: int) -> State | None:
        """Rotary positions are relative: what is kept moves to the front and is turned back as far.

        Learned positions are not.
        """
        if self.positions is not None:
            return None
        gone = int(state[0][0]) - keep
        angle = gone if keep else 0  # a context of one token keeps none, and has no angle for it
        cos, sin = self.cos[angle], -self.sin[angle]
        size = 4 if self.config.has_conv else 2
        after = list(state[2:])
        for i in range(0, len(after), size):
            for j, part in enumerate(after[i : i + 2]):
                kept = part[:, :, gone : gone + keep]
                after[i + j] = torch.zeros_like(part)
                after[i + j][:, :, :keep] = rotate(kept, cos, sin) if j == 0 else kept
        return (state[0] - gone, (state[1] - gone).clamp(min=0), *after)

    @classmethod
    def recipe(cls, facts: CorpusFacts) -> Recipe:
        if facts.mode == "lines":
            train = cls.base_training(facts, optimizer="muon", batch_tokens=2048, lr=3e-3)
            config = TransformerConfig(block_size=train.block_size, n_embd=64)
            return Recipe(
                replace(config, dropout=max(0.1, _dropout(config, facts, train.batch_tokens))), train
            )
        # Embeddings and head take a bold rate; a bolder one (0.03) grows too sure of names it knows.
        train = cls.base_training(facts, optimizer="muon", batch_tokens=2048, lr=0.01, weight_decay=0.1)
        config = _sized(facts, train.batch_tokens)
        return Recipe(replace(config, dropout=_dropout(config, facts, train.batch_tokens)), train)


def _weights(config: TransformerConfig) -> int:
    """In blocks."""
    return 12 * config.n_layer * config.n_embd**2


def _seen(config: TransformerConfig, facts: CorpusFacts, batch_tokens: int) -> float:
    """Tokens that the budget has room for."""
    return facts.tokens(batch_tokens, FLOPS[facts.device] / (6 * _weights(config)))


def _dropout(config: TransformerConfig, facts: CorpusFacts, batch_tokens: int) -> float:
    passes = _seen(config, facts, batch_tokens) / facts.train_tokens
    return next((share for least, share in DROPOUTS if passes >= least), 0.0)


def _sized(facts: CorpusFacts, batch_tokens: int) -> TransformerConfig:
    """The widest model with fewer weights than the text has tokens, of which the budget pays for
    enough: model and tokens grow together (Hoffmann et al. 2022)."""
    fits = TransformerConfig(n_embd=WIDTHS[0])
    for n_embd in WIDTHS[1:]:
        config = TransformerConfig(n_embd=n_embd, n_layer=max(4, n_embd // 64), n_head=max(4, n_embd // 64))
        weights, seen = _weights(config), _seen(config, facts, batch_tokens)
        if weights <= facts.train_tokens and seen >= TOKENS_A_WEIGHT * weights:
            fits = config
    return fits
