"""Parameter groups, optimizers, learning-rate schedules, and the exponential moving average of weights."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from makemore.errors import UserError
from makemore.models.base import LanguageModel
from makemore.runtime.sharding import gather_full, local_shards, shard_like
from makemore.settings import TrainConfig, milestone_fractions


def lr_scale(config: TrainConfig, step: int, progress: float) -> float:
    """Learning rate as a fraction of its peak.

    Warm-up counts steps; decay follows ``progress``, the fraction of the budget (steps or time) used.
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "constant":
        return warmup
    if config.schedule == "step":
        return warmup * 0.1 ** sum(progress >= milestone for milestone in milestone_fractions(config))
    if config.schedule == "cosine":
        decay = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    else:
        decay = (
            min(1.0, max(0.0, (1 - progress) / config.warmdown_fraction)) if config.warmdown_fraction else 1.0
        )
    return warmup * (config.final_lr_fraction + (1 - config.final_lr_fraction) * decay)


def orthogonalise(matrices: Tensor, steps: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Approximate the nearest semi-orthogonal matrices, (K, rows, columns), by Newton-Schulz iteration.

    Computes in ``dtype`` with the quintic coefficients of Muon (Jordan et al. 2024).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.to(dtype)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    for _ in range(steps):
        gram = x.mT @ x if tall else x @ x.mT
        poly = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        # Multiply tall matrices from the right, to avoid transposing in memory.
        x = torch.baddbmm(x, x, poly, beta=a) if tall else torch.baddbmm(x, poly, x, beta=a)
    return x


class Muon(torch.optim.Optimizer):
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
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def _velocity(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(parameter)
        return state["velocity"]

    found_inf: Tensor | None = None
    """() float, 1 to skip the update; named as in torch's fused optimizers."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads = [p.grad for p in params]
            velocity = [self._velocity(p) for p in params]
            torch._foreach_lerp_(velocity, grads, 1 - group["momentum"])
            nesterov = torch._foreach_lerp(grads, velocity, group["momentum"])
            rows, columns = params[0].shape[0] // group["parts"], params[0].shape[1]
            update = orthogonalise(torch.stack(nesterov).view(-1, rows, columns), dtype=self.dtype)
            update = update.view(-1, *params[0].shape)
            # Makes an update's RMS 1/sqrt(columns), as for a square matrix.
            scale = math.sqrt(max(1.0, rows / columns))
            if group["weight_decay"]:
                torch._foreach_mul_(params, _shrink(group["lr"] * group["weight_decay"], self.found_inf))
            if self.found_inf is not None:
                update = torch.where(self.found_inf > 0, 0.0, update)
            torch._foreach_add_(params, list(update.to(params[0].dtype)), alpha=-group["lr"] * scale)


def _shrink(decay: float, found_inf: Tensor | None) -> Any:
    """Factor on the weights: 1 - decay, or 1 if the update is skipped."""
    return 1 - decay if found_inf is None else 1 - decay * (1 - found_inf)


class SGD(torch.optim.SGD):
    """Momentum with decoupled weight decay (Loshchilov & Hutter 2019), as in AdamW and Muon."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            if decay := group.get("decay", 0.0):
                params = [p for p in group["params"] if p.grad is not None]
                torch._foreach_mul_(params, _shrink(group["lr"] * decay, getattr(self, "found_inf", None)))
        super().step()


class EMA:
    """Exponential moving average of weights and float buffers (Polyak & Juditsky 1992), bias-corrected
    as in Kingma & Ba 2015.
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
        return {"steps": self.steps, "average": gather_full(self.average)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = int(state["steps"])
        for average, saved in zip(self.average, state["average"], strict=True):
            average.copy_(shard_like(saved, average))


class OptimizerSet:
    """The optimizers of one model, stepped together under one schedule."""

    def __init__(
        self, model: LanguageModel, config: TrainConfig, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        """``dtype``: dtype of Muon's matrix products."""
        if config.optimizer == "none":
            raise UserError("train.optimizer=none is for count models only; set it to adamw, muon or sgd")
        self.config = config
        self.schedule: Callable[[int, float], float] = partial(lr_scale, config)
        """Fraction of the peak learning rates, from step and progress."""
        named = dict(model.named_parameters())
        matrices = model.muon_parameters() if config.optimizer == "muon" else {}
        self.scale = 1.0
        """Factor on all learning rates, halved by each rollback after divergence."""
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            hidden = [named[name] for name in matrices]
            decay = config.weight_decay
            self.parts.append(Muon(hidden, config.matrix_lr, 0.95, decay, matrices.values(), dtype))
        rest = [p for name, p in named.items() if name not in matrices]
        if rest:
            self.parts.append(self._sgd_or_adamw(rest))
        self._peaks = [[group["lr"] for group in part.param_groups] for part in self.parts]
        self.parameters = [p for part in self.parts for g in part.param_groups for p in g["params"]]

    def _sgd_or_adamw(self, params: list[nn.Parameter]) -> torch.optim.Optimizer:
        config = self.config
        decay_key = "decay" if config.optimizer == "sgd" else "weight_decay"
        groups = [
            {"params": [p for p in params if p.ndim >= 2], decay_key: config.weight_decay},
            {"params": [p for p in params if p.ndim < 2], decay_key: 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        device_type = params[0].device.type
        if config.optimizer == "sgd":
            # The fused kernel can skip an update without synchronising.
            fused = device_type == "cuda" and not hasattr(params[0], "full_tensor")
            return SGD(groups, lr=config.lr, momentum=config.beta1, fused=fused)
        fused = device_type in ("cpu", "cuda", "mps")
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=fused)

    def step(self, step: int, progress: float, skip: Tensor | None = None) -> None:
        """Apply the current gradients at this step's learning rate, then clear them.

        ``skip``: () float on the device, 1 to leave the weights unchanged.
        """
        lr_factor = self.schedule(step, progress) * self.scale
        for part, peaks in zip(self.parts, self._peaks, strict=True):
            for group, peak in zip(part.param_groups, peaks, strict=True):
                group["lr"] = peak * lr_factor
            if skip is not None:
                part.found_inf = skip  # type: ignore[attr-defined]
            part.step()
            part.zero_grad(set_to_none=True)

    def clip(self) -> Tensor:
        """Clip gradients by their global norm, and return the norm before clipping."""
        max_norm = self.config.clip or math.inf
        foreach = self.parameters[0].device.type in ("cpu", "cuda")
        return nn.utils.clip_grad_norm_(self.parameters, max_norm, foreach=foreach)

    def state_dict(self) -> dict[str, Any]:
        parts = {str(i): gather_full(part.state_dict()) for i, part in enumerate(self.parts)}
        return {**parts, "scale": self.scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scale = float(state["scale"])
        for i, part in enumerate(self.parts):
            params = [p for group in part.param_groups for p in group["params"]]
            local = {
                int(k): {name: shard_like(t, params[int(k)]) for name, t in entry.items()}
                for k, entry in state[str(i)]["state"].items()
            }
            if any(
                t.ndim and t.shape != params[k].shape for k, entry in local.items() for t in entry.values()
            ):
                raise ValueError("the optimizer's state doesn't match the model's parameters")
            # Learning rates, weight decay and betas come from the settings.
            part.load_state_dict({"state": local, "param_groups": part.state_dict()["param_groups"]})
