"""Sizes of weights and of their gradients, parameter by parameter."""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from makemore.inspection.figures import BLUE, ORANGE, new_figure
from makemore.inspection.subject import Picture, Subject, Verdict
from makemore.models.base import CountModel, LanguageModel
from makemore.types import IGNORE_INDEX, Batch

MOST_ROWS = 60
FAR_APART = 1000.0
CAPTION = (
    "A row for each parameter: how large its values are after training, and how large the loss's gradient in "
    "them is on one training batch, on a logarithmic scale. The box holds the middle half, the whiskers nine "
    "tenths, zeros left out. Gradients of like size from bottom to top mean that every layer learns."
)


def draw(subject: Subject) -> Picture | None:
    """None for what isn't trained by gradients, or where there is no batch."""
    if subject.batch is None or isinstance(subject.model, CountModel) or not subject.model.n_parameters():
        return None
    if not subject.model.standalone:
        return None
    grads = gradients(subject.model, subject.batch)
    values = {name: p.detach() for name, p in subject.model.named_parameters()}
    names = list(values)[:MOST_ROWS]
    figure = new_figure(10, 0.24 * len(names) + 1.3)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, tensors, colour in ((left, values, BLUE), (right, grads, ORANGE)):
        axes.bxp(
            [quantiles(tensors[name]) for name in names],
            manage_ticks=False,  # they'd be set once for each side, one upon the other
            orientation="horizontal",
            showfliers=False,
            patch_artist=True,
            widths=0.6,
            boxprops={"facecolor": colour, "alpha": 0.5},
            medianprops={"color": "black"},
        )
        axes.grid(axis="x", alpha=0.3)
    left.set_yticks(range(1, len(names) + 1), names, fontsize=8)
    left.set_ylim(len(names) + 0.6, 0.4)
    left.set_ylabel("parameter")
    right.tick_params(axis="y", length=0)
    left.set_xlabel("size of weights (log10)")
    right.set_xlabel("size of gradients (log10)")
    return Picture("parameters", "Weights and gradients", CAPTION, figure, judge(grads, values))


def gradients(model: LanguageModel, batch: Batch) -> dict[str, Tensor]:
    """The mean loss's gradient in each parameter on a batch, as inference computes it."""
    model = copy.deepcopy(model).eval()
    with torch.enable_grad():
        logits = model(batch.inputs_BT, None, batch.targets_BT != IGNORE_INDEX)[0]
        F.cross_entropy(
            logits.flatten(0, 1), batch.targets_BT.flatten(), ignore_index=IGNORE_INDEX
        ).backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}


def quantiles(tensor: Tensor) -> dict[str, float]:
    """A box of the logarithms (base 10) of what isn't zero; NaN where all is."""
    sizes = tensor.detach().abs().double().flatten().numpy()
    logs: NDArray[np.float64] = np.log10(sizes[sizes > 0])
    if not len(logs):
        logs = np.array([np.nan])
    low, q1, med, q3, high = np.percentile(logs, [5, 25, 50, 75, 95])
    return {"whislo": low, "q1": q1, "med": med, "q3": q3, "whishi": high}


def judge(grads: dict[str, Tensor], values: dict[str, Tensor]) -> list[Verdict]:
    """Parameters that no gradient reaches, and layers whose gradients differ much."""
    idle = [name for name, grad in grads.items() if not grad.any()]
    verdicts = [Verdict("warning", f"no gradient reaches {name}") for name in idle]
    matrices = {name: _rms(grads[name]) for name, v in values.items() if v.ndim > 1 and name not in idle}
    if len(matrices) > 1:
        most, least = max(matrices, key=matrices.__getitem__), min(matrices, key=matrices.__getitem__)
        apart = matrices[most] / matrices[least]
        said = f"gradients of matrices differ {apart:,.0f}-fold, from {least} to {most}"
        much = apart > FAR_APART
        verdicts.append(Verdict("warning" if much else "good", f"{said}: too much" if much else said))
    return verdicts


def _rms(tensor: Tensor) -> float:
    return float(tensor.double().square().mean().sqrt())
