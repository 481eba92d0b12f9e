"""Detect losses and gradients that are not finite, before they reach the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class NonFiniteError(Exception):
    """A step's loss or gradient norm was not finite."""

    def __init__(self, step: int, loss: float, norm: float) -> None:
        self.step = step
        """Step number, from 1."""
        bad_loss = not math.isfinite(loss)
        self.what = "the loss" if bad_loss else "the gradient norm"
        self.value = loss if bad_loss else norm
        super().__init__(f"{self.what} is {self.value} at step {step}")


class FiniteGuard:
    """Checks the loss and gradient norm of every step.

    On the CPU it raises at once. On GPUs reading a value synchronises, so ``check`` reads occasionally; from
    the first bad step on, ``skip`` is 1, and optimizers that support it leave the weights unchanged.
    """

    def __init__(self, device: torch.device, skips: bool) -> None:
        """``skips``: whether the optimizers support ``skip``."""
        self.raises_immediately = device.type == "cpu"
        self.device, self.skips = device, skips
        self.reset()

    def reset(self) -> None:
        """Forget any bad step."""
        self._step = torch.zeros((), dtype=torch.int64, device=self.device)
        self._values = torch.zeros(2, device=self.device)
        self._bad = torch.zeros((), device=self.device)

    @property
    def skip(self) -> Tensor | None:
        """1 if updates must be skipped, () float; or None if the optimizers needn't check."""
        return self._bad if self.skips and not self.raises_immediately else None

    def watch(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Check a step's () loss and gradient norm; on the CPU raises NonFiniteError. ``step`` is from 0."""
        if self.raises_immediately:
            if not (math.isfinite(float(loss)) and math.isfinite(float(norm))):
                raise NonFiniteError(step + 1, float(loss), float(norm))
            return
        values = torch.stack([loss.detach().float(), norm.detach().float()])
        is_first = (self._bad == 0) & ~values.isfinite().all()
        self._step = torch.where(is_first, step + 1, self._step)
        self._values = torch.where(is_first, values, self._values)
        self._bad = torch.where(is_first, 1.0, self._bad)

    def check(self) -> None:
        """Raise NonFiniteError if a step so far was bad; synchronises with the device."""
        if not self.raises_immediately and (step := int(self._step)):
            loss, norm = self._values.tolist()
            raise NonFiniteError(step, loss, norm)
