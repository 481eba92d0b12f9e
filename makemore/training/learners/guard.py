"""Losses and gradients that are no finite numbers, noticed before they reach the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class NotFinite(Exception):  # noqa: N818 - what has been seen; the trainer says what to do
    """A step's loss or gradient norm was no finite number."""

    def __init__(self, step: int, loss: float, norm: float) -> None:
        self.step = step
        """Counted from 1."""
        bad_loss = not math.isfinite(loss)
        self.what = "the loss" if bad_loss else "the gradient's norm"
        self.value = loss if bad_loss else norm
        super().__init__(f"{self.what} is {self.value} at step {step}")


class Guard:
    """Watches every step of a run.

    On the CPU it raises at once. Elsewhere reading a number waits for the device, so ``check`` reads now
    and then; from the first bad step on ``skip`` is 1, and the optimizers that heed it change nothing.
    """

    def __init__(self, device: torch.device, skips: bool) -> None:
        """``skips``: the optimizers heed ``skip``."""
        self.at_once = device.type == "cpu"
        self.device, self.skips = device, skips
        self.reset()

    def reset(self) -> None:
        """Nothing bad has been seen."""
        self._step = torch.zeros((), dtype=torch.int64, device=self.device)
        self._values = torch.zeros(2, device=self.device)
        self._bad = torch.zeros((), device=self.device)

    @property
    def skip(self) -> Tensor | None:
        """() float, 1 where updates have to be left out; None where nothing need be asked."""
        return self._bad if self.skips and not self.at_once else None

    def watch(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Look at a step's () loss and gradient norm. Raises NotFinite on the CPU; ``step`` is from 0."""
        if self.at_once:
            if not (math.isfinite(float(loss)) and math.isfinite(float(norm))):
                raise NotFinite(step + 1, float(loss), float(norm))
            return
        values = torch.stack([loss.detach().float(), norm.detach().float()])
        first = (self._bad == 0) & ~values.isfinite().all()
        self._step = torch.where(first, step + 1, self._step)
        self._values = torch.where(first, values, self._values)
        self._bad = torch.where(first, 1.0, self._bad)

    def check(self) -> None:
        """Raises NotFinite where a step so far was bad; this waits for the device."""
        if not self.at_once and (step := int(self._step)):
            loss, norm = self._values.tolist()
            raise NotFinite(step, loss, norm)
