"""Sizes of weights and gradients by parameter."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from makemore.inspection.figures import BLUE, ORANGE, new_figure
from makemore.inspection.subject import Finding, Picture, Subject
from makemore.models.base import CountModel, LanguageModel
from makemore.types import IGNORE_INDEX, Batch, Floats

MAX_ROWS = 60
CAPTION = (
    "One row per parameter, log scale: absolute values after training (left), and of the loss gradient on "
    "one training batch (right). Boxes span the middle 50%, whiskers 90%, without zeros. A "
    "parameter without gradients doesn't learn."
)


def plot(subject: Subject) -> Picture | None:
    """Plot the sizes. Returns None for models trained without gradients, or without a batch."""
    model, batch = subject.model, subject.batch
    has_gradients = model.is_trainable and not isinstance(model, CountModel) and model.n_parameters()
    if batch is None or not has_gradients:
        return None
    grads = gradients(model, batch)
    values = {name: p.detach() for name, p in model.named_parameters()}
    names = list(values)[:MAX_ROWS]
    figure = new_figure(10, 0.24 * len(names) + 1.3)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, tensors, colour in ((left, values, BLUE), (right, grads, ORANGE)):
        axes.bxp(
            [quantiles(tensors[name]) for name in names],
            manage_ticks=False,  # the axes share ticks, which would be set twice
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
    left.set(ylabel="parameter", xlabel="size of weights (log10)")
    right.tick_params(axis="y", length=0)
    right.set_xlabel("size of gradients (log10)")
    return Picture("parameters", "Weights and gradients", CAPTION, figure, interpret(grads, values))


def gradients(model: LanguageModel, batch: Batch) -> dict[str, Tensor]:
    """Gradient of the mean loss with respect to each parameter on a batch, in eval mode."""
    model = copy.deepcopy(model).eval()
    with torch.enable_grad():
        logits = model(batch.inputs_BT, None, batch.targets_BT != IGNORE_INDEX)[0]
        F.cross_entropy(
            logits.flatten(0, 1), batch.targets_BT.flatten(), ignore_index=IGNORE_INDEX
        ).backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}


def quantiles(tensor: Tensor) -> dict[str, float]:
    """Box-plot statistics of log10 of the nonzero absolute values; NaN if all are zero."""
    sizes = tensor.detach().abs().double().flatten().numpy()
    logs: Floats = np.log10(sizes[sizes > 0])
    if not len(logs):
        logs = np.array([np.nan])
    low, q1, med, q3, high = np.percentile(logs, [5, 25, 50, 75, 95])
    return {"whislo": low, "q1": q1, "med": med, "q3": q3, "whishi": high}


def interpret(grads: dict[str, Tensor], values: dict[str, Tensor]) -> list[Finding]:
    """Report parameters without gradients, and large differences between gradients."""
    idle = [name for name, grad in grads.items() if not grad.any()]
    findings = [Finding("warning", f"no gradient reaches {name}") for name in idle]
    used = [name for name, v in values.items() if v.ndim > 1 and name not in idle]
    matrices = {name: float(grads[name].double().square().mean().sqrt()) for name in used}  # RMS
    if len(matrices) > 1:
        largest, smallest = max(matrices, key=matrices.__getitem__), min(matrices, key=matrices.__getitem__)
        ratio = matrices[largest] / matrices[smallest]
        text = f"gradient sizes differ {ratio:,.0f}-fold, from {smallest} to {largest}"
        findings.append(Finding("note", text))
    return findings
