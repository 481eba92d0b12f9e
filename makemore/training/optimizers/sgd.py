"""SGD with momentum and decoupled weight decay."""

from __future__ import annotations

from typing import Any

import torch

from makemore.models.base import LanguageModel
from makemore.runtime import optimizers
from makemore.settings.train import OptimizerConfig
from makemore.training.optimizers.base import decay_factor, decay_groups


class SGD(optimizers.SGD):
    """Momentum with decoupled weight decay (Loshchilov & Hutter 2019), as in AdamW and Muon."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            if decay := group.get("decay", 0.0):
                params = [p for p in group["params"] if p.grad is not None]
                torch._foreach_mul_(
                    params, decay_factor(group["lr"] * decay, getattr(self, "found_inf", None))
                )
        super().step()


def build(model: LanguageModel, config: OptimizerConfig, dtype: torch.dtype) -> list[torch.optim.Optimizer]:
    """SGD on all parameters, with momentum ``beta1``."""
    params = list(model.parameters())
    # The fused kernel can skip an update without synchronising.
    fused = params[0].device.type == "cuda" and not hasattr(params[0], "full_tensor")
    groups = decay_groups(params, config.weight_decay, "decay")
    return [SGD(groups, lr=config.lr, momentum=config.beta1, fused=fused)]
