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
        self.skips = skips
        self._now = torch.zeros((), dtype=torch.int64, device=device)
        """The current step, from 1."""
        self._step = torch.zeros_like(self._now)
        """The first bad step; 0 if there is none."""
        self._values = torch.zeros(2, device=device)
        self._bad = torch.zeros((), device=device)

    def reset(self) -> None:
        """Forget any bad step."""
        for tensor in (self._step, self._values, self._bad):
            tensor.zero_()

    @property
    def skip(self) -> Tensor | None:
        """1 if updates must be skipped, () float; or None if the optimizers needn't check."""
        return self._bad if self.skips and not self.raises_immediately else None

    def start(self, step: int) -> None:
        """Begin a step; ``step`` is from 0."""
        self._now.fill_(step + 1)

    def watch(self, loss: Tensor, norm: Tensor) -> None:
        """Check the step's () loss and gradient norm; on the CPU raises NonFiniteError."""
        if self.raises_immediately:
            if not (math.isfinite(float(loss)) and math.isfinite(float(norm))):
                raise NonFiniteError(int(self._now), float(loss), float(norm))
            return
        # In place, since a CUDA graph repeats the same memory accesses.
        values = torch.stack([loss.detach().float(), norm.detach().float()])
        is_first = (self._bad == 0) & ~values.isfinite().all()
        self._step.copy_(torch.where(is_first, self._now, self._step))
        self._values.copy_(torch.where(is_first, values, self._values))
        self._bad.masked_fill_(is_first, 1.0)

    def check(self) -> None:
        """Raise NonFiniteError if a step so far was bad; synchronises with the device."""
        if not self.raises_immediately and (step := int(self._step)):
            loss, norm = self._values.tolist()
            raise NonFiniteError(step, loss, norm)
