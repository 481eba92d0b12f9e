"""Parameter groups, optimizers, the learning rate over a budget, and the average of weights."""

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
from makemore.runtime.sharding import cut_like, own_parts, whole
from makemore.settings import TrainConfig, drop_shares


def rate(config: TrainConfig, step: int, progress: float) -> float:
    """The learning rate as a share of its peak.

    Warm-up counts in steps, decay in ``progress``, the share of the budget (steps or time) used.
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "constant":
        return warmup
    if config.schedule == "step":
        return warmup * 0.1 ** sum(progress >= share for share in drop_shares(config))
    if config.schedule == "cosine":
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    else:
        fall = min(1.0, max(0.0, (1 - progress) / config.decay_share)) if config.decay_share else 1.0
    return warmup * (config.final_lr + (1 - config.final_lr) * fall)


def orthogonalise(matrices: Tensor, steps: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly, (K, rows, columns), by Newton-Schulz iteration in
    ``dtype``.

    The quintic's coefficients are those of Muon (Jordan et al. 2024).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.to(dtype)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    for _ in range(steps):
        gram = x.mT @ x if tall else x @ x.mT
        poly = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        # A tall matrix is multiplied from the right: nothing is ever transposed in memory.
        x = torch.baddbmm(x, x, poly, beta=a) if tall else torch.baddbmm(x, poly, x, beta=a)
    return x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024), with decoupled weight decay.

    Matrices of one shape go through the iteration as one batched product. A parameter may hold
    several matrices one above the other, such as an LSTM's gates: each is orthogonalised on its own.
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
        """``parts``: of how many matrices each parameter consists; ``dtype``: that of the iteration."""
        self.dtype = dtype
        alike: dict[tuple[torch.Size, int], list[Tensor]] = {}
        for parameter, count in zip(params, parts, strict=False):
            alike.setdefault((parameter.shape, count), []).append(parameter)
        groups = [{"params": group, "parts": count} for (_, count), group in alike.items()]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def _velocity(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(parameter)
        return state["velocity"]

    found_inf: Tensor | None = None
    """() float, 1: leave the weights as they are. Fused optimizers of torch have the same."""

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
            # Root-mean-square size of an update is that of a square matrix, whatever the shape.
            scale = math.sqrt(max(1.0, rows / columns))
            if group["weight_decay"]:
                torch._foreach_mul_(params, _shrunk(group["lr"] * group["weight_decay"], self.found_inf))
            if self.found_inf is not None:
                update = torch.where(self.found_inf > 0, 0.0, update)
            torch._foreach_add_(params, list(update.to(params[0].dtype)), alpha=-group["lr"] * scale)


def _shrunk(decay: float, found_inf: Tensor | None) -> Any:
    """What decay leaves of the weights: all of them where the update is left out."""
    return 1 - decay if found_inf is None else 1 - decay * (1 - found_inf)


class SGD(torch.optim.SGD):
    """With momentum, and weight decay that is decoupled (Loshchilov & Hutter 2019) as in the other two."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            if decay := group.get("decay", 0.0):
                params = [p for p in group["params"] if p.grad is not None]
                torch._foreach_mul_(params, _shrunk(group["lr"] * decay, getattr(self, "found_inf", None)))
        super().step()


class Average:
    """Exponential moving average of a model's weights (Polyak & Juditsky 1992), bias-corrected as in
    Kingma & Ba 2015. A model's buffers, such as running statistics, are averaged with them.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """``decay``: the share of the old average that a step keeps, in (0, 1)."""
        self.decay, self.steps = decay, 0
        self.current = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
        self.average = [torch.zeros_like(t) for t in self.current]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        self.steps += 1
        # This share, 1 at first, keeps the average a true weighted mean of what has been seen.
        share = (1 - self.decay) / (1 - self.decay**self.steps)
        torch._foreach_lerp_(own_parts(self.average), own_parts(self.current), share)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights while the block runs."""
        current = own_parts(self.current)
        raw = [t.clone() for t in current]
        torch._foreach_copy_(current, own_parts(self.average))
        try:
            yield
        finally:
            torch._foreach_copy_(current, raw)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "average": whole(self.average)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = int(state["steps"])
        for average, saved in zip(self.average, state["average"], strict=True):
            average.copy_(cut_like(saved, average))


class Optimizers:
    """The optimizers of one model, stepped together under one schedule."""

    def __init__(
        self, model: LanguageModel, config: TrainConfig, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        """``dtype``: of Muon's matrix products."""
        if config.optimizer == "none":
            raise UserError("train.optimizer=none is for counting; gradients need adamw, muon or sgd")
        self.config = config
        self.schedule: Callable[[int, float], float] = partial(rate, config)
        """The share of the peak rates, from step and progress."""
        named = dict(model.named_parameters())
        matrices = model.hidden_matrices() if config.optimizer == "muon" else {}
        self.scale = 1.0
        """Of all rates: halved each time that training goes back to before it diverged."""
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            hidden = [named[name] for name in matrices]
            decay = config.weight_decay
            self.parts.append(Muon(hidden, config.matrix_lr, 0.95, decay, matrices.values(), dtype))
        rest = [p for name, p in named.items() if name not in matrices]
        if rest:
            self.parts.append(self._plain(rest))
        self._peaks = [[group["lr"] for group in part.param_groups] for part in self.parts]
        self.parameters = [p for part in self.parts for g in part.param_groups for p in g["params"]]

    def _plain(self, params: list[nn.Parameter]) -> torch.optim.Optimizer:
        config = self.config
        decay = "decay" if config.optimizer == "sgd" else "weight_decay"
        groups = [
            {"params": [p for p in params if p.ndim >= 2], decay: config.weight_decay},
            {"params": [p for p in params if p.ndim < 2], decay: 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        kind = params[0].device.type
        if config.optimizer == "sgd":
            # Fused, it can leave an update out without being asked to wait.
            fused = kind == "cuda" and not hasattr(params[0], "full_tensor")
            return SGD(groups, lr=config.lr, momentum=config.beta1, fused=fused)
        fused = kind in ("cpu", "cuda", "mps")
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=fused)

    def step(self, step: int, progress: float, skip: Tensor | None = None) -> None:
        """Update from the gradients that stand, at this step's learning rate; then forget them.

        ``skip``: () float on the device, 1 to leave the weights as they are.
        """
        share = self.schedule(step, progress) * self.scale
        for part, peaks in zip(self.parts, self._peaks, strict=True):
            for group, peak in zip(part.param_groups, peaks, strict=True):
                group["lr"] = peak * share
            if skip is not None:
                part.found_inf = skip  # type: ignore[attr-defined]
            part.step()
            part.zero_grad(set_to_none=True)

    def clip(self) -> Tensor:
        """Scale gradients to the largest norm allowed; returns the norm before."""
        limit = self.config.clip or math.inf
        together = self.parameters[0].device.type in ("cpu", "cuda")
        return nn.utils.clip_grad_norm_(self.parameters, limit, foreach=together)

    def state_dict(self) -> dict[str, Any]:
        parts = {str(i): whole(part.state_dict()) for i, part in enumerate(self.parts)}
        return {**parts, "scale": self.scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scale = float(state["scale"])
        for i, part in enumerate(self.parts):
            params = [p for group in part.param_groups for p in group["params"]]
            own = {
                int(nth): {name: cut_like(t, params[int(nth)]) for name, t in kept.items()}
                for nth, kept in state[str(i)]["state"].items()
            }
            if any(
                t.ndim and t.shape != params[nth].shape for nth, kept in own.items() for t in kept.values()
            ):
                raise ValueError("the optimizer's state is of other parameters")
            # Rates, decays and the like follow from the settings.
            part.load_state_dict({"state": own, "param_groups": part.state_dict()["param_groups"]})
