"""Muon (Jordan et al. 2024) for hidden matrices, with AdamW for the other parameters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from makemore.kernels.muon import Matrices, muon_step
from makemore.models.base import LanguageModel
from makemore.runtime.optimizers import Uncompiled
from makemore.settings.train import OptimizerConfig
from makemore.training.optimizers.adamw import adamw
from makemore.training.optimizers.base import decay_factor, is_capturable

ITERATIONS, COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)
"""Of the Newton-Schulz iteration (Jordan et al. 2024)."""


def orthogonalise(matrices: Tensor, steps: int = ITERATIONS, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Approximate the nearest semi-orthogonal matrices, (K, rows, columns), by Newton-Schulz iteration.

    Computes in ``dtype`` with the quintic coefficients of Muon (Jordan et al. 2024).
    """
    a, b, c = COEFFICIENTS
    x = matrices.to(dtype)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    for _ in range(steps):
        gram = x.mT @ x if tall else x @ x.mT
        poly = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        # Multiply tall matrices from the right, to avoid transposing in memory.
        x = torch.baddbmm(x, x, poly, beta=a) if tall else torch.baddbmm(x, poly, x, beta=a)
    return x


class Muon(Uncompiled):
    """Momentum with orthogonalised updates (Jordan et al. 2024) and decoupled weight decay.

    Matrices of equal shape are orthogonalised as one batch. A parameter may stack several matrices, such as
    an LSTM's gates: each is orthogonalised separately.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        parts: Iterable[int] = itertools.repeat(1),
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        """``parts``: number of matrices stacked in each parameter; ``dtype``: dtype of the iteration."""
        self.dtype = dtype
        by_shape: dict[tuple[torch.Size, int], list[Tensor]] = {}
        for parameter, count in zip(params, parts, strict=False):
            by_shape.setdefault((parameter.shape, count), []).append(parameter)
        groups = [{"params": group, "parts": count} for (_, count), group in by_shape.items()]
        capturable = is_capturable([p for group in by_shape.values() for p in group])
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(groups, {**defaults, "capturable": capturable})

    def _velocity(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(parameter)
        return state["velocity"]

    found_inf: Tensor | None = None
    """() float, 1 to skip the update; named as in torch's fused optimizers."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        groups = [group for group in self.param_groups if any(p.grad is not None for p in group["params"])]
        if groups and not self._native_step(groups):
            for group in groups:
                self._torch_step(group)

    def _native_step(self, groups: list[dict[str, Any]]) -> bool:
        """Update in C; False if that can't be done."""
        if self.dtype != torch.bfloat16 or groups[0]["params"][0].device.type != "cpu":
            return False
        matrices = []
        for group in groups:
            params, grads = _with_gradients(group)
            decay, rate = 1 - group["lr"] * group["weight_decay"], group["lr"] * _scale(group)
            velocities = [self._velocity(p) for p in params]
            matrices.append(
                Matrices(params, grads, velocities, group["parts"], group["momentum"], decay, rate)
            )
        return muon_step(matrices, COEFFICIENTS, ITERATIONS)

    def _torch_step(self, group: dict[str, Any]) -> None:
        params, grads = _with_gradients(group)
        velocity = [self._velocity(p) for p in params]
        torch._foreach_lerp_(velocity, grads, 1 - group["momentum"])
        nesterov = torch._foreach_lerp(grads, velocity, group["momentum"])
        matrices = torch.stack(nesterov).view(-1, params[0].shape[0] // group["parts"], params[0].shape[1])
        update = orthogonalise(matrices, dtype=self.dtype).view(-1, *params[0].shape)
        scale = _scale(group)
        if group["weight_decay"]:
            torch._foreach_mul_(params, decay_factor(group["lr"] * group["weight_decay"], self.found_inf))
        if self.found_inf is not None:
            update = torch.where(self.found_inf > 0, 0.0, update)
        update = update.to(params[0].dtype)
        if isinstance(group["lr"], Tensor):
            torch._foreach_sub_(params, list(update * (group["lr"] * scale)))
        else:
            torch._foreach_add_(params, list(update), alpha=-group["lr"] * scale)


def _with_gradients(group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters with gradients, and their gradients."""
    pairs = [(p, p.grad) for p in group["params"] if p.grad is not None]
    return [p for p, _ in pairs], [grad for _, grad in pairs]


def _scale(group: dict[str, Any]) -> float:
    """Makes an update's RMS 1/sqrt(columns), as for a square matrix."""
    rows, columns = group["params"][0].shape
    return math.sqrt(max(1.0, rows / group["parts"] / columns))


def build(model: LanguageModel, config: OptimizerConfig, dtype: torch.dtype) -> list[torch.optim.Optimizer]:
    """Muon on the model's ``muon_parameters``, with matrix products in ``dtype``; AdamW on the rest."""
    named = dict(model.named_parameters())
    matrices = model.muon_parameters()
    rest = [p for name, p in named.items() if name not in matrices]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        hidden = [named[name] for name in matrices]
        parts, decay = matrices.values(), config.weight_decay
        optimizers.append(Muon(hidden, config.matrix_lr, weight_decay=decay, parts=parts, dtype=dtype))
    return [*optimizers, adamw(rest, config)] if rest else optimizers
