"""Histograms of activations, how many are saturated, which units are dead."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from makemore.inspection.capture import Activation, watching
from makemore.inspection.figures import BLUE, ORANGE, new_figure
from makemore.inspection.pictures import gates
from makemore.inspection.subject import Picture, Subject, Verdict
from makemore.models.base import LanguageModel
from makemore.models.layers.batchnorm import BatchNorm
from makemore.models.rnn import Recurrent
from makemore.types import IGNORE_INDEX, Batch

EDGE = 0.97
"""A tanh beyond this has hardly any slope; of a sigmoid, this much of the way from its middle."""
FLAT = -0.004
"""A gelu's output, this little below 0, comes from where it has hardly any slope."""
MUCH = 0.3
"""A share of saturated activations that slows learning."""
SHOWN_TOKENS = 120
MOST_LAYERS = 16
"""That are drawn; all are judged."""
BINS = 60
BOUNDS = {"tanh": (-1.0, 1.0), "sigmoid": (0.0, 1.0)}
CAPTION = (
    "Left: how the outputs of each nonlinearity are distributed, before training (orange) and after (blue), "
    "on a training batch. Right, after training: a row for each token, a column for each unit, black where "
    "it is saturated (tanh beyond 0.97, sigmoid within 0.015 of 0 or 1) or, of relu and gelu, off (its input "
    "below 0, of a gelu below -3). A column that is black throughout is a dead unit: no token moves it."
)


@dataclass(frozen=True)
class Stage:
    """A layer's activations at one stage of training."""

    name: str
    kind: str
    values_NH: Tensor

    @property
    def stuck_NH(self) -> Tensor:
        """bool: where the slope is next to nothing."""
        return stuck(self.kind, self.values_NH)

    @property
    def share(self) -> float:
        return float(self.stuck_NH.float().mean())

    @property
    def dead(self) -> int:
        """Units that are stuck at every token."""
        return int(self.stuck_NH.all(0).sum())


def stuck(kind: str, values: Tensor) -> Tensor:
    """Where a nonlinearity's slope is next to nothing."""
    if kind == "relu":
        return values <= 0
    if kind == "gelu":
        # Of inputs below -3; those just under 0, which come out alike, are few.
        return (values <= 0) & (values > FLAT)
    return (values.abs() if kind == "tanh" else (2 * values - 1).abs()) > EDGE


def draw(subject: Subject) -> Picture | None:
    """None for what has no nonlinearities, or where there is no batch to see them at."""
    if subject.batch is None:
        return None
    after = stages(subject.model, subject.batch)
    before = stages(subject.fresh, subject.batch) if subject.fresh is not None else []
    if not after:
        return None
    shown = after[:MOST_LAYERS]
    figure = new_figure(9, 2.3 * len(shown) + 0.6)
    grid = figure.subplots(len(shown), 2, squeeze=False)
    for (left, right), stage, was in zip(grid, shown, [*before, *[None] * len(after)], strict=False):
        if was is not None:
            _histogram(left, was, ORANGE, "before training")
        _histogram(left, stage, BLUE, "after training")
        left.set_title(f"{stage.name}: {stage.share:.0%} {_word(stage.kind)}, {stage.dead} dead", fontsize=9)
        left.set_ylabel("density")
        left.locator_params(axis="x", nbins=5)
        left.legend(fontsize=7)
        right.imshow(stage.stuck_NH[:SHOWN_TOKENS].numpy(), aspect="auto", cmap="gray_r", vmin=0, vmax=1)
        right.set_ylabel("token of the batch")
        right.set_title(f"{_word(stage.kind)}, unit by unit", fontsize=9)
    left.set_xlabel("activation")
    right.set_xlabel("unit")
    return Picture("activations", "Activations", CAPTION, figure, judge(after, before))


def judge(after: Sequence[Stage], before: Sequence[Stage]) -> list[Verdict]:
    """Layers that are saturated, or have dead units."""
    verdicts = []
    for when, found in (("before training ", before), ("", after)):
        for stage in found:
            if stage.kind in ("tanh", "sigmoid") and stage.share > MUCH and "gate" not in stage.name:
                advice = "lower the initial scale" if when else "a smaller rate or weight decay would help"
                text = f"{when}{stage.name} is saturated at {stage.share:.0%}: {advice}"
                verdicts.append(Verdict("warning", text))
    for stage in after:
        if stage.dead and "gate" not in stage.name:
            units = stage.values_NH.shape[1]
            text = f"{stage.name}: {stage.dead} of {units} units are dead on this batch"
            verdicts.append(Verdict("warning" if stage.dead > 0.1 * units else "note", text))
    return verdicts or [Verdict("good", "no layer is saturated, no unit is dead")]


@torch.no_grad()
def stages(model: LanguageModel, batch: Batch) -> list[Stage]:
    """Every nonlinearity's output at the targets of a batch that count, in order."""
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        # Before training, running statistics say nothing; afterwards a batch's are as good.
        module.train(isinstance(module, BatchNorm))
    valid_BT = batch.targets_BT != IGNORE_INDEX
    with watching(model) as seen:
        model(batch.inputs_BT, None, valid_BT)
    found = [*seen(), *_recurrent(model, batch.inputs_BT)]
    length, result, counts = valid_BT.shape[1], [], dict[tuple[str, str], int]()
    often = Counter((layer, kind) for layer, kind, _ in found)
    for layer, kind, values in found:
        name = layer or kind
        counts[name, kind] = counts.get((name, kind), 0) + 1
        nth = f" {counts[name, kind]}" if often[layer, kind] > 1 else ""
        title = f"{name}{nth}" if kind in name or "gate" in name else f"{name}{nth} ({kind})"
        result.append(Stage(title, kind, values[:, -length:][valid_BT]))
    return result


def _recurrent(model: LanguageModel, tokens_BT: Tensor) -> list[Activation]:
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


def _word(kind: str) -> str:
    return "off" if kind in ("relu", "gelu") else "saturated"


def _histogram(axes: Any, stage: Stage, colour: str, name: str) -> None:
    values = stage.values_NH.flatten().float()
    if stage.kind in BOUNDS:
        low, high = BOUNDS[stage.kind]
    else:
        values = values[values > 0] if stage.kind == "relu" else values
        low = 0.0 if stage.kind == "relu" else -0.2
        high = max(float(torch.quantile(_some(values), 0.995)), low + 1e-6) if len(values) else 1.0
    density, edges = torch.histogram(values, BINS, range=(low, high), density=True)
    filled = colour == BLUE
    axes.stairs(
        density.numpy(), edges.numpy(), color=colour, fill=filled, alpha=0.6 if filled else 1, label=name
    )


def _some(values: Tensor) -> Tensor:
    """At most a million of them, evenly chosen."""
    return values[:: max(1, len(values) // 1_000_000)]
