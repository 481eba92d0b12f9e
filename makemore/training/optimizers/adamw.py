"""AdamW (Loshchilov & Hutter 2019), torch's own fused implementation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from makemore.models.base import LanguageModel
from makemore.runtime.optimizers import AdamW
from makemore.settings.train import OptimizerConfig
from makemore.training.optimizers.base import decay_groups, is_capturable


def adamw(params: Sequence[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW on some parameters."""
    fused = params[0].device.type in ("cpu", "cuda", "mps")
    capturable = is_capturable(params)
    groups = decay_groups(params, config.weight_decay, "weight_decay")
    optimizer = AdamW(
        groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=fused, capturable=capturable
    )
    # torch warns of steps outside of a CUDA graph, which cost nothing here.
    optimizer._warned_capturable_if_run_uncaptured = True
    return optimizer


def build(model: LanguageModel, config: OptimizerConfig, dtype: torch.dtype) -> list[torch.optim.Optimizer]:
    """AdamW on all parameters."""
    return [adamw(list(model.parameters()), config)]
