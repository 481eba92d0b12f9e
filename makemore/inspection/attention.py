"""Where each attention head looks, over a text."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from makemore.inspection.capture import inputs_of
from makemore.inspection.figures import labels, new_figure, token_axis
from makemore.inspection.subject import Picture, Subject, Verdict
from makemore.models.transformer import Attention, Place, Transformer
from makemore.nn.attention import rotate
from makemore.nn.norms import rms_norm

MOST_PANELS = 64
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
    rows = min(n_layer, max(1, MOST_PANELS // n_head))
    side = max(2.2, 0.13 * length + 0.4)
    figure = new_figure(side * n_head + 0.6, side * rows + 0.5)
    grid = figure.subplots(rows, n_head, squeeze=False)
    size = 7 if length <= 24 else 6
    for layer in range(rows):
        for head in range(n_head):
            axes = grid[layer, head]
            image = axes.imshow(weights[layer, head].numpy(), vmin=0, vmax=1, cmap="magma")
            axes.set_title(f"layer {layer}, head {head}", fontsize=9)
            token_axis(axes.xaxis, names, size)
            token_axis(axes.yaxis, names, size)
        grid[layer, 0].set_ylabel("looks back")
    for axes in grid[-1]:
        axes.set_xlabel("is looked at")
    figure.colorbar(image, ax=grid, shrink=0.5, label="attention")
    return Picture("attention", "Attention", CAPTION, figure, judge(weights.double().numpy()))


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
