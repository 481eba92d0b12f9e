"""Dropout (Srivastava et al. 2014) with fast random numbers on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ELEMENTS_PER_RANDOM_INT = 4
N_LEVELS = 1 << 16


class Dropout(nn.Module):
    """In training, zeroes elements with probability ``p`` and scales the others by 1 / (1 - p)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x


def dropout(x: Tensor, p: float) -> Tensor:
    """Like ``F.dropout``. On a CPU one random integer serves four elements, with ``p`` rounded to 1/65,536:
    one random integer per element would take as long as the rest of a small model's step."""
    if not p:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    n_dropped = min(max(round(p * N_LEVELS), 1), N_LEVELS - 1)
    random = torch.randint(-(2**63), 2**63 - 1, (-(-x.numel() // ELEMENTS_PER_RANDOM_INT),), device=x.device)
    mask = random.view(torch.int16)[: x.numel()].view(x.shape) >= n_dropped - N_LEVELS // 2
    return x * (mask.to(x.dtype) * (N_LEVELS / (N_LEVELS - n_dropped)))


def compile_options(device: torch.device) -> dict[str, Any] | None:
    """Options for ``torch.compile``: on a CPU eager random numbers are faster than compiled ones."""
    return {"fallback_random": True} if device.type == "cpu" else None
