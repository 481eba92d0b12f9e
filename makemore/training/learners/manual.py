"""Training steps by hand-written gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from makemore.kernels import Kernel
from makemore.models.base import LanguageModel, ManualModel
from makemore.settings import TrainConfig
from makemore.training.learners.base import count_targets
from makemore.training.learners.gradient import GradientLearner


class ManualLearner(GradientLearner):
    """Gradients from a hand-written backward pass, the model's own or in C, without an autograd graph."""

    def __init__(
        self,
        model: LanguageModel,
        config: TrainConfig,
        precision: torch.dtype,
        gradient_source: ManualModel | Kernel,
    ) -> None:
        super().__init__(model, config, precision)
        self.gradient_source = gradient_source
        self.parameters_by_name = dict(model.named_parameters())
        self.nats = None if isinstance(gradient_source, ManualModel) else gradient_source.nats

    @torch.no_grad()
    def backward(
        self, inputs_BT: Tensor, targets_BT: Tensor, count: Tensor, first: bool, last: bool
    ) -> Tensor:
        loss, grads = self.gradient_source.loss_and_grads(inputs_BT, targets_BT)
        assert not loss.requires_grad
        share = count_targets([targets_BT]) / count.clamp(min=1)
        if share.device.type != "cpu" or share != 1:  # on a GPU, a comparison would wait
            grads = dict(zip(grads, torch._foreach_mul(list(grads.values()), share), strict=True))
        for name, parameter in self.parameters_by_name.items():
            grad, accumulated = grads[name], None if first else parameter.grad
            parameter.grad = grad if accumulated is None else accumulated + grad
        return loss * share
