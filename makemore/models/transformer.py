"""The decoder-only transformer (Vaswani et al. 2017; Radford et al. 2019), in two styles.

``modern``: parameter-free RMSNorm (Zhang & Sennrich 2019), rotary position embeddings (Su et al. 2021),
query-key norm (Henry et al. 2020), gated heads (Qiu et al. 2025), squared ReLU and short convolutions (So et
al. 2021; Allen-Zhu 2025), no biases, untied head, zero-initialised output projections. ``gpt2``: LayerNorm,
learned position embeddings, GELU, biases, tied head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from makemore.models.base import LanguageModel
from makemore.models.layers.attention import (
    Attention,
    Positions,
    apply_rope,
    document_causal_bias,
    rms_norm,
    rope_table,
)
from makemore.models.layers.convolution import ShortConv
from makemore.models.layers.dropout import Dropout, compile_options
from makemore.models.layers.feed_forward import FeedForward
from makemore.models.scaling import describe_recipe, dropout_for, weight_decay_for
from makemore.settings import CorpusStats, ModelConfig, Probability, Recipe, Size, TrainConfig
from makemore.types import DocumentEnds, State

WIDTHS = (64, 96, 128, 192, 256, 384, 512, 768)
SECONDS_PER_TOKEN = {"cpu": (7e-6, 2.7e-11), "cuda": (1.1e-7, 4.4e-14), "mps": (0.0, 6e-12)}
"""Approximate training time per token, by device: a constant, and an amount per weight of the blocks. On a
CPU, a measurement corrects it."""
MAX_WEIGHTS_PER_TOKEN = {"cpu": 1.0, "cuda": 3.5, "mps": 1.0}
"""Maximum weights per training token, by device; a GPU makes enough passes to need dropout."""
DROPOUT_ONSET, DROPOUT_SLOPE = 11.0, 0.13
"""Arguments of ``dropout_for``, except for running text on a GPU."""
GPU_DROPOUT_BY_EPOCHS = ((20, 0.3), (8, 0.2))
"""(min_epochs, dropout) for running text on a GPU; the first entry that applies is used."""
MAX_EPOCHS = 30
"""Maximum number of epochs on a GPU: with more, models overfitted at every dropout tried."""
MIN_GPU_STEPS = 5000
"""Minimum number of steps in MAX_EPOCHS on a GPU; it limits the batch size."""
TOKENS_PER_WEIGHT = {"cpu": 4, "cuda": 5, "mps": 5}
"""Training tokens per weight: about 20 is best for large models, fewer for small ones on characters."""


class TransformerConfig(ModelConfig):
    """Settings of ``transformer``."""

    name: Literal["transformer"] = "transformer"
    block_size: Size = Field(128, description="context length in tokens")
    n_layer: Size = Field(4, description="number of blocks")
    n_head: Size = Field(4, description="attention heads per block")
    n_embd: Size = Field(128, description="width of the residual stream")
    dropout: Probability = Field(0.0, description="dropout probability")
    style: Literal["modern", "gpt2"] = Field(
        "modern", description="architecture: modern, or GPT-2 as in nanoGPT"
    )
    conv: Size = Field(4, description="width in tokens of the modern style's short convolutions (1: none)")
    gate: bool = Field(True, description="gate the output of each attention head (modern style only)")
    score_scale: float = Field(1.5, gt=0, le=10, description="factor of the modern style's attention scores")
    tie: bool = Field(True, description="share weights between embedding and head (gpt2 style only)")

    @model_validator(mode="after")
    def _check_head_size(self) -> Self:
        if self.n_embd % (2 * self.n_head):
            raise ValueError(f"n_embd must be a multiple of 2 x n_head ({2 * self.n_head})")
        return self

    legacy_defaults: ClassVar[Mapping[str, Any]] = {"gate": False, "score_scale": 1.0}

    @property
    def has_conv(self) -> bool:
        return self.style == "modern" and self.conv > 1

    @property
    def has_gate(self) -> bool:
        return self.style == "modern" and self.gate


def make_norm(config: TransformerConfig) -> nn.Module:
    if config.style == "gpt2":
        return nn.LayerNorm(config.n_embd)
    return nn.RMSNorm(config.n_embd, eps=1e-6, elementwise_affine=False)


class Block(nn.Module):
    """Pre-norm residual block: attention, then feed-forward, each after an optional short convolution."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = make_norm(config), make_norm(config)
        self.attention = Attention(
            config.n_embd,
            config.n_head,
            dropout=config.dropout,
            bias=config.style == "gpt2",
            gated=config.has_gate,
            score_scale=config.score_scale,
        )
        self.feed_forward = FeedForward(config.n_embd, modern=config.style == "modern")
        self.dropout = Dropout(config.dropout)
        convs = [ShortConv(config.conv, config.n_embd) for _ in range(2)] if config.has_conv else []
        self.convs = nn.ModuleList(convs)

    def forward(self, x_BTC: Tensor, positions: Positions, state: State | None) -> tuple[Tensor, State]:
        """Output and next state: keys, values and the last inputs of each convolution."""
        cache = None if state is None else (state[0], state[1])
        h_BTC, tail1 = self._convolve(0, self.norm1(x_BTC), positions, state)
        x_BTC = x_BTC + self.dropout(self.attention(h_BTC, positions, cache))
        h_BTC, tail2 = self._convolve(1, self.norm2(x_BTC), positions, state)
        x_BTC = x_BTC + self.dropout(self.feed_forward(h_BTC))
        return x_BTC, (*(cache or ()), *tail1, *tail2)

    def _convolve(
        self, i: int, x_BTC: Tensor, positions: Positions, state: State | None
    ) -> tuple[Tensor, State]:
        if not self.convs:
            return x_BTC, ()
        tail_BKC = None if state is None else state[2 + i]
        doc_position_BT = None if positions.doc_start_BT is None else positions.doc_position_BT
        out, tail = self.convs[i](x_BTC, doc_position_BT, tail_BKC)
        return out, (tail if tail_BKC is None else tail.to(tail_BKC.dtype),)


class Transformer(LanguageModel):
    """Attends to up to ``block_size`` tokens; the state holds each layer's keys, values and conv inputs."""

    Config: ClassVar[type[TransformerConfig]] = TransformerConfig
    summary = "decoder-only transformer, modern or GPT-2 style"
    supports_streaming = False
    supports_packing = True
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
            cos, sin = rope_table(config.block_size, config.n_embd // config.n_head)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
            self._init_modern(blocks)

    def set_document_ends(self, document_ends: DocumentEnds) -> None:
        """Has no effect in GPT-2 style, whose logits must equal GPT-2's."""
        if self.config.style == "modern":
            super().set_document_ends(document_ends)

    def compile_blocks(self, wanted: bool = True) -> bool:
        # Compiling one block for all layers takes a quarter of the time of four and runs nearly as fast.
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
        """Position and document start, each (B,) int64; then for each layer keys and values,
        (B, H, capacity, D), and the last inputs of its convolutions, (B, conv - 1, C)."""
        config, device = self.config, self.device
        n_slots = min(capacity, config.block_size)
        cache = (batch_size, config.n_head, n_slots, config.n_embd // config.n_head)
        tail = (batch_size, config.conv - 1, config.n_embd)
        shapes = [cache, cache, *([tail, tail] if config.has_conv else [])] * config.n_layer
        positions = [torch.zeros(batch_size, dtype=torch.int64, device=device) for _ in range(2)]
        return (*positions, *(torch.zeros(shape, device=device) for shape in shapes))

    def _locate(self, tokens_BT: Tensor, state: State | None) -> Positions:
        """Positions and mask of a call's tokens. A boundary token begins a document, hiding earlier ones."""
        batch, length = tokens_BT.shape
        position_BT = torch.arange(length, device=tokens_BT.device).expand(batch, -1)
        if state is None and self.one_document_per_row:
            return Positions(None, self._rotary(position_BT[:1]), None, position_BT[:1], None)
        first_B = None if state is None else state[0]
        if first_B is not None:
            position_BT = position_BT + first_B[:, None]
        doc_start_BT = torch.where(tokens_BT == self.boundary_id, position_BT, 0)
        if state is not None:
            doc_start_BT = torch.maximum(doc_start_BT, state[1][:, None])
        doc_start_BT = doc_start_BT.cummax(dim=1).values
        bias = document_causal_bias(position_BT, doc_start_BT, length if state is None else state[2].shape[2])
        return Positions(bias, self._rotary(position_BT), first_B, position_BT - doc_start_BT, doc_start_BT)

    def _rotary(self, position_BT: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.positions is not None:
            return None
        return self.cos[position_BT][:, None], self.sin[position_BT][:, None]

    def forward(
        self, tokens_BT: Tensor, state: State | None = None, valid_BT: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        """Raises ValueError for more than ``block_size`` tokens; a state needs capacity for all tokens."""
        length = tokens_BT.shape[1]
        if length > self.config.block_size:
            raise ValueError(f"{length} tokens exceed block_size ({self.config.block_size})")
        positions = self._locate(tokens_BT, state)
        x = self.embedding(tokens_BT)
        x = rms_norm(x) if self.positions is None else x + self.positions(positions.doc_position_BT)
        x = self.dropout(x)
        new_state: list[Tensor] = []
        n_tensors = 4 if self.config.has_conv else 2
        run_block = self._compiled_block if self.training and self._compiled_block else Block.__call__
        for i, block in enumerate(self.blocks):
            block_state = None if state is None else state[2 + n_tensors * i : 2 + n_tensors * (i + 1)]
            x, block_state = run_block(block, x, positions, block_state)
            new_state.extend(block_state)
        logits = self.exclude_ends(self.head(self.norm(x)), tokens_BT)
        if state is None or positions.doc_start_BT is None:
            return logits, None
        return logits, (state[0] + length, positions.doc_start_BT[:, -1], *new_state)

    def drop_oldest(self, state: State, n_keep: int) -> State | None:
        """Move the last ``n_keep`` tokens to the front and rotate keys back: rotary positions are relative.

        Returns None for learned positions, which are absolute.
        """
        if self.positions is not None:
            return None
        n_dropped = int(state[0][0]) - n_keep
        angle = n_dropped if n_keep else 0  # n_keep is 0 if block_size is 1; cos then has 1 row
        cos, sin = self.cos[angle], -self.sin[angle]
        n_tensors = 4 if self.config.has_conv else 2
        new_state = list(state[2:])
        for i in range(0, len(new_state), n_tensors):
            for j, cache in enumerate(new_state[i : i + 2]):
                recent = cache[:, :, n_dropped : n_dropped + n_keep]
                new_state[i + j] = torch.zeros_like(cache)
                new_state[i + j][:, :, :n_keep] = apply_rope(recent, cos, sin) if j == 0 else recent
        return (state[0] - n_dropped, (state[1] - n_dropped).clamp(min=0), *new_state)

    @classmethod
    def recipe(cls, stats: CorpusStats) -> Recipe:
        base, batch = partial(cls.default_train_config, stats, optimizer="muon"), 2048
        if stats.mode == "lines":
            train = base(batch_tokens=batch, lr=3e-3)
            config = TransformerConfig(block_size=train.data.block_size, n_embd=64)
            config = config.replace(dropout=max(0.1, _dropout(_epochs(config, stats, batch))))
            return _make_recipe(config, train, stats)
        if stats.device == "cuda":
            return _gpu_recipe(stats, base)
        # Embeddings and head need a high learning rate; 0.03 makes the model overconfident on training names.
        config = _largest_affordable(stats, batch)
        epochs = _epochs(config, stats, batch)
        train = base(batch_tokens=batch, lr=0.01, weight_decay=weight_decay_for(epochs), ema=0.99)
        return _make_recipe(config.replace(dropout=_dropout(epochs)), train, stats)


def _gpu_recipe(stats: CorpusStats, base: Callable[..., TrainConfig]) -> Recipe:
    """Settings for running text: the largest batch that leaves enough steps, and learning rates to match.

    ``base`` makes the training settings that all recipes share.
    """
    tokens = MAX_EPOCHS * stats.train_tokens
    batch = min(16384, max(4096, 2 ** int(math.log2(max(tokens / MIN_GPU_STEPS, 1)))))
    steps = -(-tokens // batch)
    scale = min(2.0, math.sqrt(batch / 2048))
    rates = {"lr": 0.01 * scale, "matrix_lr": 0.02 * scale, "weight_decay": 0.1}
    train = base(steps=min(steps, stats.steps or steps), batch_tokens=batch, block_size=256, **rates)
    config = _largest_affordable(stats, batch).replace(block_size=train.data.block_size)
    epochs = _epochs(config, stats, batch)
    dropout = next((dropout for min_epochs, dropout in GPU_DROPOUT_BY_EPOCHS if epochs >= min_epochs), 0.0)
    return _make_recipe(config.replace(dropout=dropout), train, stats)


def _make_recipe(config: TransformerConfig, train: TrainConfig, stats: CorpusStats) -> Recipe:
    epochs = _epochs(config, stats, train.data.batch_tokens)
    if train.steps is not None:
        epochs = min(epochs, train.steps * train.data.batch_tokens / stats.train_tokens)
    reason = describe_recipe(config.n_layer, config.n_embd, config.dropout, epochs)
    return Recipe(config, train, _tokens_per_second(config, stats), reason)


def _n_block_weights(config: TransformerConfig) -> int:
    return 12 * config.n_layer * config.n_embd**2


def _tokens_per_second(config: TransformerConfig, stats: CorpusStats) -> float:
    constant, per_weight = SECONDS_PER_TOKEN[stats.device]
    return stats.speed / (constant + per_weight * _n_block_weights(config))


def _budget_tokens(config: TransformerConfig, stats: CorpusStats, batch_tokens: int) -> float:
    return stats.tokens(batch_tokens, _tokens_per_second(config, stats))


def _epochs(config: TransformerConfig, stats: CorpusStats, batch_tokens: int) -> float:
    return _budget_tokens(config, stats, batch_tokens) / stats.train_tokens


def _dropout(epochs: float) -> float:
    return dropout_for(epochs, DROPOUT_ONSET, DROPOUT_SLOPE)


def _largest_affordable(stats: CorpusStats, batch_tokens: int) -> TransformerConfig:
    """The widest model that the text and the budget allow.

    Model and data grow together (Hoffmann et al. 2022): a model has at most MAX_WEIGHTS_PER_TOKEN weights per
    token of the text, and the budget at least TOKENS_PER_WEIGHT tokens per weight.
    """
    most = MAX_WEIGHTS_PER_TOKEN[stats.device] * stats.train_tokens
    best = TransformerConfig(n_embd=WIDTHS[0])
    for n_embd in WIDTHS[1:]:
        config = TransformerConfig(n_embd=n_embd, n_layer=max(4, n_embd // 64), n_head=max(4, n_embd // 64))
        n_weights, tokens = _n_block_weights(config), _budget_tokens(config, stats, batch_tokens)
        if n_weights <= most and tokens >= TOKENS_PER_WEIGHT[stats.device] * n_weights:
            best = config
    return best
