"""Where each attention head looks, over a text."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from makemore.inspection.capture import inputs_of
from makemore.inspection.figures import WIDTH, labels, new_figure, token_axis
from makemore.inspection.subject import Picture, Subject, Verdict
from makemore.models.layers.attention import rotate
from makemore.models.layers.norms import rms_norm
from makemore.models.transformer import Attention, Place, Transformer

MOST_PANELS = 64
LABEL = 7.5
"""Points."""
AROUND = 1.6
"""Inches beside the panels, of the bar and the labels on the left."""
STRONG = 0.5
"""A share of a head's attention that gives it a name."""
CAPTION = (
    "A panel for each head. Each row is a token that looks back, each column a token that it looks at; a row "
    "sums to 1. A bright line under the diagonal is a head that looks at the token before; a bright first "
    "column is one that rests on the boundary, which means: nothing to add."
)


def draw(subject: Subject) -> Picture | None:
    """None for what has no attention."""
    if not isinstance(subject.model, Transformer):
        return None
    weights = patterns(subject.model, subject.tokens_T[None])[:, 0]
    n_layer, n_head, length, _ = weights.shape
    names = labels(subject.tokenizer, subject.tokens_T)
    shown = min(n_layer, max(1, MOST_PANELS // n_head))
    side = max(2.2, 0.11 * length + 0.2)
    lines, columns = arrangement(n_head, side)
    turned = 0.4 if max(map(len, names)) > 2 else 0.1
    figure = new_figure(side * columns + AROUND, (side + 0.15 + turned) * shown * lines + 0.3)
    grid = figure.subplots(shown * lines, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for layer, head in np.ndindex(shown, n_head):
        line, column = divmod(head, columns)
        axes = grid[layer * lines + line, column]
        axes.set_axis_on()
        image = axes.imshow(weights[layer, head].numpy(), vmin=0, vmax=1, cmap="magma")
        axes.set_title(f"layer {layer}, head {head}", fontsize=9)
        token_axis(axes.xaxis, names, LABEL)
        token_axis(axes.yaxis, names if column == 0 else [], LABEL)
    figure.supylabel("token that looks back", fontsize=10)
    figure.supxlabel("token that is looked at", fontsize=10)
    figure.colorbar(
        image, ax=grid, label="share of the attention", fraction=0.02, pad=0.01, aspect=30, shrink=0.4
    )
    caption = CAPTION + (f" Only the first {shown} layers are drawn." if shown < n_layer else "")
    return Picture("attention", "Attention", caption, figure, judge(weights.double().numpy()))


def arrangement(n_head: int, side: float) -> tuple[int, int]:
    """Lines and columns for the heads of a layer, no wider than a page."""
    lines = -(-n_head // max(1, int((WIDTH - AROUND) / side)))
    return lines, -(-n_head // lines)


@torch.no_grad()
def patterns(model: Transformer, tokens_BT: Tensor) -> Tensor:
    """(layers, B, H, T, T): the attention weights, computed anew from each layer's input."""
    found = []
    for layer, x_BTC, place, _ in inputs_of(model, Attention, lambda: model(tokens_BT)):
        assert isinstance(layer, Attention)
        assert isinstance(place, Place)
        batch, length, width = x_BTC.shape
        qkv = layer.qkv(x_BTC).view(batch, length, 3, layer.n_head, width // layer.n_head)
        q, k, _ = qkv.permute(2, 0, 3, 1, 4)
        if place.rotary is not None:
            q, k = rotate(rms_norm(q), *place.rotary), rotate(rms_norm(k), *place.rotary)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        found.append(torch.softmax(scores + place.bias, dim=-1))
    return torch.stack(found)


def judge(weights_LHTT: np.ndarray) -> list[Verdict]:
    """Heads that look at one place most of the time, and those that look at all places alike."""
    verdicts = []
    for layer, heads in enumerate(weights_LHTT):
        for head, weights_TT in enumerate(heads):
            said = _habit(weights_TT)
            if said:
                verdicts.append(Verdict("note", f"layer {layer}, head {head} {said}"))
    return verdicts or [Verdict("note", "no head keeps to one place; each looks where the text makes it")]


def _habit(weights_TT: np.ndarray) -> str:
    length = len(weights_TT)
    rest = weights_TT[2:]  # the first two tokens have hardly a choice
    if length < 5:
        return ""
    at = np.arange(2, length)
    shares = {
        "the token itself": rest[at - 2, at].mean(),
        "the token before": rest[at - 2, at - 1].mean(),
        "the boundary": rest[:, 0].mean(),
    }
    place, share = max(shares.items(), key=lambda item: item[1])
    if share > STRONG:
        return f"looks at {place} ({share:.0%})"
    entropy = -(rest * np.log(np.maximum(rest, 1e-12))).sum(1) / np.log(at + 1)
    return "spreads its attention evenly" if entropy.mean() > 0.95 else ""
