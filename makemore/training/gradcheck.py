"""Hand-written gradients against autograd and against finite differences, all in float64."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from makemore.models.base import ManualModel
from makemore.types import IGNORE_INDEX

AUTOGRAD_TOLERANCE = 1e-9
DIFFERENCE_TOLERANCE = 1e-6
STEP = 1e-5

M = TypeVar("M", bound=ManualModel)


@runtime_checkable
class Stepwise(Protocol):
    """A manual model that also shows the gradient of every value on the way to its loss."""

    def intermediates(self, inputs_BT: Tensor, targets_BT: Tensor) -> dict[str, Tensor]:
        """Values by name, differentiable, ``loss`` among them."""

    def intermediate_grads(self, inputs_BT: Tensor, targets_BT: Tensor) -> dict[str, Tensor]:
        """The hand-written gradient of each of them, by the same names."""


@dataclass(frozen=True)
class GradRow:
    """How a hand-written gradient compares with its reference."""

    name: str
    """Of the parameter or intermediate value."""
    reference: Literal["autograd", "differences"]
    exact: bool
    """Equal bit for bit."""
    approximate: bool
    """Within 1e-9 of autograd, or 1e-6 of finite differences."""
    max_difference: float
    """The largest absolute difference, in nats per unit of the value."""


def gradcheck(
    model: ManualModel, inputs_BT: Tensor, targets_BT: Tensor, samples: int = 16, seed: int = 0
) -> list[GradRow]:
    """Every comparison there is for a model: parameters, intermediates, finite differences.

    The model itself is left alone: a float64 copy in training mode is checked, on the CPU, at
    parameters moved a little at random, because a fresh model's quiet head passes no gradient down.
    ``samples`` is how many entries of each parameter are compared with finite differences.
    """
    probe = _moved(copy.deepcopy(model).cpu().double().train(), seed)
    batch = inputs_BT.cpu(), targets_BT.cpu()
    rows = check_parameters(probe, *batch)
    if isinstance(probe, Stepwise):
        rows += check_intermediates(probe, *batch)
    return rows + check_differences(probe, *batch, samples, seed)


def check_parameters(model: ManualModel, inputs_BT: Tensor, targets_BT: Tensor) -> list[GradRow]:
    """Gradients of ``loss_and_grads`` against autograd through ``forward``, a row a parameter."""
    _, grads = model.loss_and_grads(inputs_BT, targets_BT)
    names, parameters = zip(*model.named_parameters(), strict=True)
    expected = torch.autograd.grad(_loss(model, inputs_BT, targets_BT), parameters)
    return [
        _compare(name, "autograd", grads[name], reference)
        for name, reference in zip(names, expected, strict=True)
    ]


def check_intermediates(model: Stepwise, inputs_BT: Tensor, targets_BT: Tensor) -> list[GradRow]:
    """Gradients of a stepwise model's intermediate values against autograd's, a row a value."""
    values = model.intermediates(inputs_BT, targets_BT)
    grads = model.intermediate_grads(inputs_BT, targets_BT)
    expected = torch.autograd.grad(values["loss"], list(values.values()))
    return [
        _compare(name, "autograd", grads[name], reference)
        for name, reference in zip(values, expected, strict=True)
    ]


@torch.no_grad()
def check_differences(
    model: ManualModel, inputs_BT: Tensor, targets_BT: Tensor, samples: int = 16, seed: int = 0
) -> list[GradRow]:
    """Up to ``samples`` random entries of each parameter's gradient against central differences."""
    _, grads = model.loss_and_grads(inputs_BT, targets_BT)
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for name, parameter in model.named_parameters():
        entries = torch.randperm(parameter.numel(), generator=generator)[:samples]
        flat = parameter.view(-1)
        differences = torch.empty_like(flat[entries])
        for place, entry in enumerate(entries.tolist()):
            value = flat[entry].clone()
            flat[entry] = value + STEP
            above = _loss(model, inputs_BT, targets_BT)
            flat[entry] = value - STEP
            below = _loss(model, inputs_BT, targets_BT)
            flat[entry] = value
            differences[place] = (above - below) / (2 * STEP)
        rows.append(_compare(name, "differences", grads[name].reshape(-1)[entries], differences))
    return rows


def _loss(model: ManualModel, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean nats over valid targets, by the model's own ``forward``."""
    valid_BT = targets_BT != IGNORE_INDEX
    logits_BTV, _ = model(inputs_BT, None, valid_BT)
    return F.cross_entropy(logits_BTV[valid_BT], targets_BT[valid_BT])


def _moved(model: M, seed: int) -> M:
    """The model with a little noise on every parameter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(noise, alpha=0.1)
    return model


def _compare(
    name: str, reference: Literal["autograd", "differences"], ours: Tensor, expected: Tensor
) -> GradRow:
    tolerance = AUTOGRAD_TOLERANCE if reference == "autograd" else DIFFERENCE_TOLERANCE
    difference = (ours - expected).abs().max().item()
    return GradRow(name, reference, torch.equal(ours, expected), difference <= tolerance, difference)
