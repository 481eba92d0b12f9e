"""Dropout (Srivastava et al. 2014), whose random numbers cost little on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LANES = 4
LEVELS = 1 << 16


class Dropout(nn.Module):
    """In training a share ``p`` of the elements is zero, and the others are larger by 1 / (1 - p)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x


def dropout(x: Tensor, p: float) -> Tensor:
    """As ``F.dropout``. On a CPU, where a number drawn for each element takes as long as all the rest of a
    small model's step, each decides for four: ``p`` is rounded to a 65,536th."""
    if not p:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    dropped = min(max(round(p * LEVELS), 1), LEVELS - 1)
    drawn = torch.randint(-(2**63), 2**63 - 1, (-(-x.numel() // LANES),), device=x.device)
    kept = drawn.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - LEVELS // 2
    return x * (kept.to(x.dtype) * (LEVELS / (LEVELS - dropped)))


def compile_options(device: torch.device) -> dict[str, Any] | None:
    """For ``torch.compile``: on a CPU torch draws random numbers faster than compiled code does."""
    return {"fallback_random": True} if device.type == "cpu" else None
