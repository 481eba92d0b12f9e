"""Helper functions for the optimizers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn


def decay_factor(decay: float, found_inf: Tensor | None) -> Any:
    """Factor on the weights: 1 - decay, or 1 if the update is skipped."""
    return 1 - decay if found_inf is None else 1 - decay * (1 - found_inf)


def decay_groups(params: Iterable[nn.Parameter], weight_decay: float, key: str) -> list[dict[str, Any]]:
    """Parameter groups with weight decay, under the option ``key``, on matrices only."""
    params = list(params)
    groups = [
        {"params": [p for p in params if p.ndim >= 2], key: weight_decay},
        {"params": [p for p in params if p.ndim < 2], key: 0.0},
    ]
    return [group for group in groups if group["params"]]


def is_capturable(params: Sequence[Tensor]) -> bool:
    """Whether steps on the parameters can be recorded in a CUDA graph: all are unsharded on a CUDA device."""
    return params[0].device.type == "cuda" and not hasattr(params[0], "full_tensor")
