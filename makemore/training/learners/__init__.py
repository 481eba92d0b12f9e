"""Learners: one training step by autograd, hand-written gradients or counting; and how to choose them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from makemore.kernels import Kernel, find_kernel
from makemore.models.base import CountModel, LanguageModel, ManualModel
from makemore.runtime import distributed
from makemore.settings import TrainConfig
from makemore.training.learners.autograd import AutogradLearner
from makemore.training.learners.base import Learner
from makemore.training.learners.count import CountLearner
from makemore.training.learners.manual import ManualLearner
from makemore.types import Batch


def make_learner(
    model: LanguageModel,
    config: TrainConfig,
    precision: torch.dtype,
    compiled: bool,
    held_out: Callable[[], Iterable[Batch]] = tuple,
    native: Kernel | None = None,
) -> Learner:
    """Choose a model's learner; ``native``: the model's C kernel, used in place of autograd."""
    if isinstance(model, CountModel):
        return CountLearner(model, held_out)
    gradient_source = model if isinstance(model, ManualModel) else native
    if gradient_source is not None:
        return ManualLearner(model, config, precision, gradient_source)
    return AutogradLearner(model, config, precision, compiled)


def pick_native(
    model: LanguageModel, train: TrainConfig, device: torch.device, precision: torch.dtype
) -> Kernel | None:
    """The model's C implementation, if it has one and training may use it."""
    allowed = train.runtime.compile == "auto" and device.type == "cpu" and not is_sharded(train)
    return find_kernel(model, precision) if allowed else None


def is_sharded(train: TrainConfig) -> bool:
    """Whether weights and optimizer states are sharded over several processes."""
    return train.runtime.shard and distributed.world_size() > 1
