"""The optimizers of one model, stepped together."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from makemore.errors import UserError
from makemore.models.base import LanguageModel
from makemore.runtime.sharding import shard_like
from makemore.settings import TrainConfig
from makemore.training.optimizers import OPTIMIZERS
from makemore.training.optimizers.schedule import lr_scale


class OptimizerSet:
    """The optimizers of one model, stepped together under one schedule."""

    def __init__(
        self, model: LanguageModel, config: TrainConfig, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        """``dtype``: dtype of Muon's matrix products."""
        if config.optimizer.name == "none":
            known = ", ".join(OPTIMIZERS)
            raise UserError(f"train.optimizer=none is for count models only; set it to one of {known}")
        self.config = config
        self.schedule: Callable[[int, float], float] = partial(lr_scale, config.schedule)
        """Fraction of the peak learning rates, from step and progress."""
        self.scale = 1.0
        """Factor on all learning rates, halved by each rollback after divergence."""
        self.parts = OPTIMIZERS.get(config.optimizer.name)(model, config.optimizer, dtype)
        self._peaks = [[group["lr"] for group in part.param_groups] for part in self.parts]
        self.lr = 0.0
        """The last step's learning rate of the last parameter group."""
        self.capturable = all(part.defaults.get("capturable", False) for part in self.parts)
        """Whether a step may be recorded in a CUDA graph: learning rates are then tensors."""
        if self.capturable:
            for group in (group for part in self.parts for group in part.param_groups):
                group["lr"] = torch.full((), group["lr"], device=group["params"][0].device)
        self.parameters = [p for part in self.parts for g in part.param_groups for p in g["params"]]

    def set_lr(self, step: int, progress: float) -> None:
        """Set the learning rates of a step."""
        lr_factor = self.schedule(step, progress) * self.scale
        for part, peaks in zip(self.parts, self._peaks, strict=True):
            for group, peak in zip(part.param_groups, peaks, strict=True):
                self.lr = peak * lr_factor
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(self.lr)
                else:
                    group["lr"] = self.lr

    def step(self, skip: Tensor | None = None) -> None:
        """Apply the current gradients, then clear them.

        ``skip``: () float on the device, 1 to leave the weights unchanged.
        """
        for part in self.parts:
            if skip is not None:
                part.found_inf = skip  # type: ignore[attr-defined]
            part.step()
            part.zero_grad(set_to_none=True)

    def clip(self) -> Tensor:
        """Clip gradients by their global norm, and return the norm before clipping."""
        max_norm = self.config.optimizer.clip or math.inf
        foreach = self.parameters[0].device.type in ("cpu", "cuda")
        return nn.utils.clip_grad_norm_(self.parameters, max_norm, foreach=foreach)

    def state_dict(self) -> dict[str, Any]:
        parts = {str(i): part.state_dict() for i, part in enumerate(self.parts)}
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
