"""Check hand-written gradients against autograd and finite differences, in float64."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from makemore.errors import UserError
from makemore.models import MODELS
from makemore.models.base import ManualModel
from makemore.settings.train import require_seed
from makemore.training.request import parse_assignments, requested_config
from makemore.types import IGNORE_INDEX

AUTOGRAD_TOLERANCE = 1e-9
DIFFERENCE_TOLERANCE = 1e-6
DIFFERENCE_STEP = 1e-5
M = TypeVar("M", bound=ManualModel)


@runtime_checkable
class HasIntermediateGrads(Protocol):
    """A manual model that also exposes the gradients of its intermediate values."""

    def intermediates(self, inputs_BT: Tensor, targets_BT: Tensor) -> dict[str, Tensor]:
        """Differentiable intermediate values by name, including ``loss``."""

    def intermediate_grads(self, inputs_BT: Tensor, targets_BT: Tensor) -> dict[str, Tensor]:
        """The hand-written gradients of these values, by the same names."""


@dataclass(frozen=True)
class GradRow:
    """Comparison of a hand-written gradient with its reference."""

    name: str
    """Name of the parameter or intermediate value."""
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
    """Compare a model's gradients: parameters, intermediate values, and finite differences.

    The model is left unchanged: we check a float64 copy on the CPU, in training mode, with small noise added
    to its parameters, because a fresh model's near-zero head passes no gradient down. ``samples`` is the
    number of entries of each parameter to compare with finite differences.
    """
    probe = _add_noise(copy.deepcopy(model).cpu().double().train(), seed)
    batch = inputs_BT.cpu(), targets_BT.cpu()
    rows = check_parameters(probe, *batch)
    if isinstance(probe, HasIntermediateGrads):
        rows += check_intermediates(probe, *batch)
    return rows + check_differences(probe, *batch, samples, seed)


def check_parameters(model: ManualModel, inputs_BT: Tensor, targets_BT: Tensor) -> list[GradRow]:
    """Compare gradients of ``loss_and_grads`` with autograd through ``forward``, one row per parameter."""
    _, grads = model.loss_and_grads(inputs_BT, targets_BT)
    loss, parameters = _loss(model, inputs_BT, targets_BT), dict(model.named_parameters())
    return _compare_with_autograd(loss, parameters, grads)


def check_intermediates(model: HasIntermediateGrads, inputs_BT: Tensor, targets_BT: Tensor) -> list[GradRow]:
    """Compare gradients of intermediate values with autograd, one row per value."""
    values = model.intermediates(inputs_BT, targets_BT)
    return _compare_with_autograd(values["loss"], values, model.intermediate_grads(inputs_BT, targets_BT))


def _compare_with_autograd(
    loss: Tensor, values: Mapping[str, Tensor], grads: Mapping[str, Tensor]
) -> list[GradRow]:
    expected = zip(values, torch.autograd.grad(loss, list(values.values())), strict=True)
    return [_compare(name, "autograd", grads[name], reference) for name, reference in expected]


@torch.no_grad()
def check_differences(
    model: ManualModel, inputs_BT: Tensor, targets_BT: Tensor, samples: int = 16, seed: int = 0
) -> list[GradRow]:
    """Compare up to ``samples`` random entries of each parameter's gradient with central differences."""
    _, grads = model.loss_and_grads(inputs_BT, targets_BT)
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for name, parameter in model.named_parameters():
        entries = torch.randperm(parameter.numel(), generator=generator)[:samples]
        flat = parameter.view(-1)
        differences = torch.empty_like(flat[entries])
        for i, entry in enumerate(entries.tolist()):
            value = flat[entry].clone()
            flat[entry] = value + DIFFERENCE_STEP
            above = _loss(model, inputs_BT, targets_BT)
            flat[entry] = value - DIFFERENCE_STEP
            below = _loss(model, inputs_BT, targets_BT)
            flat[entry] = value
            differences[i] = (above - below) / (2 * DIFFERENCE_STEP)
        rows.append(_compare(name, "differences", grads[name].reshape(-1)[entries], differences))
    return rows


def _loss(model: ManualModel, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean nats over valid targets, from ``forward``."""
    valid_BT = targets_BT != IGNORE_INDEX
    logits_BTV, _ = model(inputs_BT, None, valid_BT)
    return F.cross_entropy(logits_BTV[valid_BT], targets_BT[valid_BT])


def _add_noise(model: M, seed: int) -> M:
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


VOCAB, ROWS, LENGTH = 27, 8, 6


def check_gradients(name: str, settings: tuple[str, ...] = (), seed: int = 0) -> list[GradRow]:
    """Check the gradients of a fresh model on a random batch with padding.

    Raises UserError if the model has no hand-written backward pass.
    """
    kind = MODELS.get(name)
    if not issubclass(kind, ManualModel):
        manual = [n for n in MODELS if issubclass(MODELS.get(n), ManualModel)]
        raise UserError(f"{name} has no hand-written backward pass; choose from {', '.join(manual)}")
    sources = parse_assignments([*settings, f"model.name={name}"], ("model",))
    config = requested_config(sources).model
    require_seed(seed)
    torch.manual_seed(seed)
    model = kind(config, VOCAB, 0)
    tokens = torch.randint(1, VOCAB, (ROWS, LENGTH + 1))
    tokens[:, 0] = 0
    targets = tokens[:, 1:].clone()
    targets[: ROWS // 2, LENGTH // 2 :] = IGNORE_INDEX
    return gradcheck(model, tokens[:, :-1], targets, seed=seed)
