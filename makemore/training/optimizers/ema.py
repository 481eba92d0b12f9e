"""The moving average of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from makemore.runtime.sharding import local_shards, shard_like


class EMA:
    """Exponential moving average of weights and float buffers (Polyak & Juditsky 1992), bias-corrected
    as in Kingma & Ba 2015. torch's AveragedModel has no correction, and copies the module, which FSDP2 can't.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """``decay``: fraction of the old average that an update keeps, in (0, 1)."""
        self.decay, self.steps = decay, 0
        self.current = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
        self.average = [torch.zeros_like(t) for t in self.current]

    @torch.no_grad()
    def update(self) -> None:
        """Add the current weights to the average."""
        self.steps += 1
        # Bias correction: 1 in the first update, so the initial zeros don't count.
        weight = (1 - self.decay) / (1 - self.decay**self.steps)
        torch._foreach_lerp_(local_shards(self.average), local_shards(self.current), weight)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Context manager: swap the averaged weights into the model."""
        current = local_shards(self.current)
        raw = [t.clone() for t in current]
        torch._foreach_copy_(current, local_shards(self.average))
        try:
            yield
        finally:
            torch._foreach_copy_(current, raw)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "average": self.average}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = int(state["steps"])
        for average, saved in zip(self.average, state["average"], strict=True):
            average.copy_(shard_like(saved, average))
