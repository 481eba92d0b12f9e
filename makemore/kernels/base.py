"""Logits, losses and gradients computed in C on the CPU, in place of torch."""

from __future__ import annotations

from functools import singledispatch
from typing import Protocol

import torch
from torch import Tensor

from makemore.models.base import LanguageModel

PANEL = 32
"""The sides of matrices must be multiples of this, for vectorised C."""


class Kernel(Protocol):
    """A model computed in C on the CPU. Inputs and targets are (B, T) int64; each row begins a document."""

    def logits(self, inputs_BT: Tensor) -> Tensor:
        """The logits of the model's ``forward`` without a state, (B, T, V) float32."""

    def loss_and_grads(self, inputs_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean nats over valid targets, () float32, and its gradient by parameter name."""

    def nats(self, inputs_BT: Tensor, targets_BT: Tensor) -> float:
        """Nats summed over valid targets."""


@singledispatch
def find_kernel(model: LanguageModel, precision: torch.dtype) -> Kernel | None:
    """The C kernel with matrix products at ``precision``, or None; the caller then uses torch."""
    return None
