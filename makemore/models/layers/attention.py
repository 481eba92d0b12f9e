"""Causal attention with a static key-value cache, and rotary position embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from makemore.models.layers.dropout import dropout as drop


def document_causal_bias(position_BT: Tensor, doc_start_BT: Tensor, keys: int) -> Tensor:
    """Attention bias (B, 1, T, keys) float32: 0 from a query's document start to its position, else -inf."""
    key = torch.arange(keys, device=position_BT.device)
    hidden = (key > position_BT[..., None]) | (key < doc_start_BT[..., None])
    return torch.zeros_like(hidden, dtype=torch.float32).masked_fill_(hidden, -math.inf)[:, None]


def write_cache(cache_BHCD: Tensor, new_BHTD: Tensor, position_B: Tensor) -> None:
    """Write new keys or values at ``position_B`` onwards, in place."""
    batch, _, length, _ = new_BHTD.shape
    device = cache_BHCD.device
    row_B11 = torch.arange(batch, device=device)[:, None, None]
    head_H1 = torch.arange(cache_BHCD.shape[1], device=device)[:, None]
    column_B1T = (position_B[:, None] + torch.arange(length, device=device))[:, None]
    cache_BHCD[row_B11, head_H1, column_B1T] = new_BHTD.to(cache_BHCD.dtype)


def causal_bias(length: int, device: torch.device) -> Tensor:
    """Causal attention bias (1, 1, T, T) float32: 0 up to a query's position, else -inf."""
    position_1T = torch.arange(length, device=device)[None]
    return document_causal_bias(position_1T, torch.zeros_like(position_1T), length)


def attend(q_BHTD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017), (B, H, T, D); causal if ``bias`` is None.

    On a CPU plain matrix products beat the fused kernel, whose backward pass is slow at short contexts. On a
    GPU the fused kernels win, and the fastest (Dao et al. 2022) support only the causal mask.
    """
    if q_BHTD.device.type != "cpu":
        mask = None if bias is None else bias.to(q_BHTD.dtype)
        return F.scaled_dot_product_attention(
            q_BHTD, k_BHSD, v_BHSD, attn_mask=mask, dropout_p=dropout, is_causal=bias is None
        )
    if bias is None:
        bias = causal_bias(q_BHTD.shape[2], q_BHTD.device)
    scores = (q_BHTD / math.sqrt(q_BHTD.shape[-1])) @ k_BHSD.transpose(-2, -1)
    weights = torch.softmax(scores + bias, dim=-1)
    if dropout:
        weights = drop(weights, dropout)
    return weights.to(v_BHSD.dtype) @ v_BHSD


def rope_table(length: int, head_dim: int, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (T, D / 2) float32, of rotary position embeddings (Su et al. 2021)."""
    frequency = base ** (-torch.arange(0, head_dim, 2) / head_dim)
    angle = torch.outer(torch.arange(length).float(), frequency)
    return angle.cos(), angle.sin()


def rms_norm(x: Tensor) -> Tensor:
    """Divide by the root mean square over the last dimension (Zhang & Sennrich 2019)."""
    return F.rms_norm(x, (x.shape[-1],), eps=1e-6)


def apply_rope(x_BHTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (i, i + D/2) by its position's angle; cos, sin broadcast to (B, H, T, D / 2)."""
    a, b = x_BHTD.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).type_as(x_BHTD)


@dataclass(frozen=True)
class Positions:
    """Positions and attention mask of one call, shared by all layers."""

    bias: Tensor | None
    """Added to the attention scores, broadcast to (B, H, T, S); None for plain causal attention."""
    rotary: tuple[Tensor, Tensor] | None
    position_B: Tensor | None
    """Cache position of the call's first token; None without a cache."""
    doc_position_BT: Tensor
    """Position of each token within its document, broadcast to (B, T)."""
    doc_start_BT: Tensor | None
    """Position at which each token's document begins; None if each row is one document."""


class Attention(nn.Module):
    """Multi-head causal self-attention."""

    def __init__(
        self, width: int, n_head: int, *, dropout: float, bias: bool, gated: bool, score_scale: float
    ) -> None:
        """Initialise the layers; a new gate is 1.

        Args:
            gated: multiply each head's output by a factor from 0 to 2 that depends on the layer's input (Qiu
                et al. 2025, "Gated attention").
            score_scale: factor of the scores; applies with rotary positions only.
        """
        super().__init__()
        self.n_head, self.dropout, self.score_scale = n_head, dropout, score_scale
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        self.gate = nn.Parameter(torch.zeros(n_head, width)) if gated else None

    def queries_keys_values(self, x_BTC: Tensor, positions: Positions) -> tuple[Tensor, Tensor, Tensor]:
        """Each (B, H, T, D); queries and keys normalised and rotated if positions are rotary."""
        batch, length, width = x_BTC.shape
        qkv = self.qkv(x_BTC).view(batch, length, 3, self.n_head, width // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if positions.rotary is not None:
            q = apply_rope(rms_norm(q) * self.score_scale, *positions.rotary)
            k = apply_rope(rms_norm(k), *positions.rotary)
        return q, k, v

    def forward(self, x_BTC: Tensor, positions: Positions, cache: tuple[Tensor, Tensor] | None) -> Tensor:
        batch, length, width = x_BTC.shape
        q, k, v = self.queries_keys_values(x_BTC, positions)
        if cache is not None and positions.position_B is not None:
            write_cache(cache[0], k, positions.position_B)
            write_cache(cache[1], v, positions.position_B)
            k, v = cache[0].to(q.dtype), cache[1].to(q.dtype)
        out = attend(q, k, v, positions.bias, self.dropout if self.training else 0.0)
        out_BTHD = out.transpose(1, 2)
        if self.gate is not None:
            out_BTHD = out_BTHD * (2 * torch.sigmoid(F.linear(x_BTC, self.gate)))[..., None]
        return self.out(out_BTHD.reshape(batch, length, width))
