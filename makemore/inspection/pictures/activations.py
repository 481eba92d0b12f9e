"""Activation histograms, saturation and dead units."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from makemore.inspection.capture import Activation, record_activations
from makemore.inspection.figures import BLUE, ORANGE, new_figure
from makemore.inspection.pictures import gates
from makemore.inspection.subject import Finding, Picture, Subject
from makemore.models.base import LanguageModel
from makemore.models.layers.batchnorm import BatchNorm
from makemore.models.rnn import Recurrent
from makemore.types import IGNORE_INDEX, Batch

SATURATION_THRESHOLD = 0.97
"""Saturation threshold: of abs(tanh), or of abs(2 * sigmoid - 1)."""
GELU_FLAT = -0.004
"""GELU outputs between this and 0 come from inputs where its slope is almost zero."""
MAX_SATURATED_FRACTION = 0.3
"""Fraction of saturated activations above which a layer is reported."""
SHOWN_TOKENS = 120
MAX_LAYERS = 16
"""Maximum number of plotted layers; all layers are checked."""
BINS = 60
BOUNDS = {"tanh": (-1.0, 1.0), "sigmoid": (0.0, 1.0)}
CAPTION = (
    "Left: distribution of each nonlinearity's outputs on a training batch, before training (orange) and "
    "after (blue). Right, after training: one row per token and one column per unit, marked where the unit "
    "is saturated (tanh beyond 0.97, sigmoid within 0.015 of 0 or 1) or off (relu input below 0, gelu input "
    "below -3). A column marked throughout is a dead unit: it gets almost no gradient from any token."
)


@dataclass(frozen=True)
class LayerActivations:
    """A layer's activations before or after training."""

    name: str
    kind: str
    values_NH: Tensor

    @property
    def saturated_NH(self) -> Tensor:
        """bool: where the slope is almost zero."""
        return is_saturated(self.kind, self.values_NH)

    @property
    def share(self) -> float:
        return float(self.saturated_NH.float().mean())

    @property
    def dead(self) -> int:
        """Number of units that are stuck at every token."""
        return int(self.saturated_NH.all(0).sum())


def is_saturated(kind: str, values: Tensor) -> Tensor:
    """Where the slope of a nonlinearity is almost zero."""
    if kind == "relu":
        return values <= 0
    if kind == "gelu":
        # Inputs below -3, and the few just below 0 that give the same outputs.
        return (values <= 0) & (values > GELU_FLAT)
    return (values.abs() if kind == "tanh" else (2 * values - 1).abs()) > SATURATION_THRESHOLD


def plot(subject: Subject) -> Picture | None:
    """Plot the activations. Returns None without nonlinearities or without a batch."""
    after = [] if subject.batch is None else stages(subject.model, subject.batch)
    if subject.batch is None or not after:
        return None
    before = [] if subject.untrained is None else stages(subject.untrained, subject.batch)
    shown = after[:MAX_LAYERS]
    figure = new_figure(9, 2.3 * len(shown) + 0.6)
    grid = figure.subplots(len(shown), 2, squeeze=False)
    for (left, right), stage, untrained in zip(grid, shown, [*before, *[None] * len(after)], strict=False):
        if untrained is not None:
            _histogram(left, untrained, ORANGE, "before training")
        _histogram(left, stage, BLUE, "after training")
        left.set_title(f"{stage.name}: {stage.share:.0%} {_state(stage.kind)}, {stage.dead} dead", fontsize=9)
        left.set_ylabel("density")
        left.locator_params(axis="x", nbins=5)
        left.legend(fontsize=7)
        right.imshow(stage.saturated_NH[:SHOWN_TOKENS].numpy(), aspect="auto", cmap="gray_r", vmin=0, vmax=1)
        right.set_ylabel("token of the batch")
        right.set_title(f"{_state(stage.kind)}, by unit", fontsize=9)
    left.set_xlabel("activation")
    right.set_xlabel("unit")
    return Picture("activations", "Activations", CAPTION, figure, interpret(after, before))


def interpret(after: Sequence[LayerActivations], before: Sequence[LayerActivations]) -> list[Finding]:
    """Report saturated layers and dead units. Only before training is saturation a fault: trained units
    saturate where they are sure, and learn from the other tokens unless they are dead."""
    findings = []
    for stage in filter(_is_saturated_layer, before):
        text = f"before training {stage.name} is saturated at {stage.share:.0%}: lower the initial scale"
        findings.append(Finding("warning", text))
    for stage in after:
        if _is_saturated_layer(stage) and not stage.dead:
            text = f"{stage.name} is saturated at {stage.share:.0%}, but every unit gets gradients"
            findings.append(Finding("note", text))
        if stage.dead and "gate" not in stage.name:
            units = stage.values_NH.shape[1]
            text = f"{stage.name}: {stage.dead} of {units} units are dead on this batch"
            findings.append(Finding("warning" if stage.dead > 0.1 * units else "note", text))
    return findings or [Finding("good", "no saturated layers, no dead units")]


def _is_saturated_layer(stage: LayerActivations) -> bool:
    is_bounded = stage.kind in BOUNDS and "gate" not in stage.name
    return is_bounded and stage.share > MAX_SATURATED_FRACTION


@torch.no_grad()
def stages(model: LanguageModel, batch: Batch) -> list[LayerActivations]:
    """Output of every nonlinearity at the valid targets of a batch, in order."""
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        # Running statistics are meaningless before training; batch statistics work before and after.
        module.train(isinstance(module, BatchNorm))
    valid_BT = batch.targets_BT != IGNORE_INDEX
    with record_activations(model) as recorded:
        model(batch.inputs_BT, None, valid_BT)
    # The gate of a mixture isn't a layer of a member.
    own = [activation for activation in recorded() if not activation.layer.startswith("gates.")]
    outputs = [*own, *_recurrent_activations(model, batch.inputs_BT)]
    length, result, counts = valid_BT.shape[1], [], dict[tuple[str, str], int]()
    totals = Counter((layer, kind) for layer, kind, _ in outputs)
    for layer, kind, values in outputs:
        name = layer or kind
        counts[name, kind] = counts.get((name, kind), 0) + 1
        nth = f" {counts[name, kind]}" if totals[layer, kind] > 1 else ""
        title = f"{name}{nth}" if kind in name or "gate" in name else f"{name}{nth} ({kind})"
        result.append(LayerActivations(title, kind, values[:, -length:][valid_BT]))
    return result


def _recurrent_activations(model: LanguageModel, tokens_BT: Tensor) -> list[Activation]:
    if not isinstance(model, Recurrent):
        return []
    kinds = {"hidden": "tanh", "candidate": "tanh"} | dict.fromkeys(gates.GATES, "sigmoid")
    layers = gates.run(model, tokens_BT)
    return [
        Activation(f"layer {n} {name}" if len(layers) > 1 else name, kinds[name], values)
        for n, layer in enumerate(layers)
        for name, values in layer.items()
        if name in kinds
    ]


def _state(kind: str) -> str:
    return "off" if kind in ("relu", "gelu") else "saturated"


def _histogram(axes: Any, stage: LayerActivations, colour: str, name: str) -> None:
    values = stage.values_NH.flatten().float()
    if stage.kind in BOUNDS:
        low, high = BOUNDS[stage.kind]
    else:
        values = values[values > 0] if stage.kind == "relu" else values
        low = 0.0 if stage.kind == "relu" else -0.2
        sample = values[:: max(1, len(values) // 1_000_000)]
        high = max(float(torch.quantile(sample, 0.995)), low + 1e-6) if len(values) else 1.0
    density, edges = torch.histogram(values, BINS, range=(low, high), density=True)
    filled = colour == BLUE
    axes.stairs(
        density.numpy(), edges.numpy(), color=colour, fill=filled, alpha=0.6 if filled else 1, label=name
    )
