"""Optimizers: each is one file here and one line in this registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from makemore.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from makemore.models.base import LanguageModel
    from makemore.settings.train import OptimizerConfig

    Builder = Callable[[LanguageModel, OptimizerConfig, torch.dtype], list[torch.optim.Optimizer]]

OPTIMIZERS: Registry[Builder] = Registry(
    "optimizer",
    {
        "adamw": "makemore.training.optimizers.adamw:build",
        "muon": "makemore.training.optimizers.muon:build",
        "sgd": "makemore.training.optimizers.sgd:build",
    },
)
"""Functions that build the optimizers of a model; the dtype is for matrix products inside them."""
