"""Loss and gradients computed in C on the CPU, in place of autograd."""

from __future__ import annotations

from functools import singledispatch
from typing import Protocol

import torch
from torch import Tensor

from makemore.models.base import LanguageModel


class GradientKernel(Protocol):
    """Loss and gradients of a model, computed in C on the CPU. Inputs and targets are (B, T) int64."""

    def loss_and_grads(self, inputs_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean nats over valid targets, () float32, and its gradient by parameter name."""

    def nats(self, inputs_BT: Tensor, targets_BT: Tensor) -> float:
        """Nats summed over valid targets."""


@singledispatch
def gradient_kernel(model: LanguageModel, precision: torch.dtype) -> GradientKernel | None:
    """The C kernel with matrix products at ``precision``, or None; the caller then uses autograd."""
    return None
