"""Attention patterns of every head over a text."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from makemore.inspection.capture import record_inputs
from makemore.inspection.figures import WIDTH, labels, new_figure, token_axis
from makemore.inspection.subject import Finding, Picture, Subject
from makemore.models.layers.attention import Attention, Positions
from makemore.models.transformer import Transformer

MAX_PANELS = 64
LABEL_SIZE = 7.5
"""Font size in points."""
MARGIN = 1.6
"""Inches beside the panels for the colour bar and the labels on the left."""
MIN_ATTENTION = 0.5
"""Mean attention weight above which a head is described by its target."""
CAPTION = (
    "One panel per head. Rows are query tokens, columns are key tokens; each row sums to 1. A strong line "
    "below the diagonal is a head that attends to the previous token; a strong first column is a head that "
    "attends to the boundary token when it has nothing to add."
)


def plot(subject: Subject) -> Picture | None:
    """Plot the attention patterns. Returns None for models without attention."""
    if not isinstance(subject.model, Transformer):
        return None
    weights = attention_weights(subject.model, subject.tokens_T[None])[:, 0]
    n_layer, n_head, length, _ = weights.shape
    names = labels(subject.tokenizer, subject.tokens_T)
    shown = min(n_layer, max(1, MAX_PANELS // n_head))
    side = max(2.2, 0.11 * length + 0.2)
    rows, columns = panel_grid(n_head, side)
    label_height = 0.4 if max(map(len, names)) > 2 else 0.1
    figure = new_figure(side * columns + MARGIN, (side + 0.15 + label_height) * shown * rows + 0.3)
    grid = figure.subplots(shown * rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for layer, head in np.ndindex(shown, n_head):
        row, column = divmod(head, columns)
        axes = grid[layer * rows + row, column]
        axes.set_axis_on()
        image = axes.imshow(weights[layer, head].numpy(), vmin=0, vmax=1, cmap="Blues")
        axes.set_title(f"layer {layer}, head {head}", fontsize=9)
        token_axis(axes.xaxis, names, LABEL_SIZE)
        token_axis(axes.yaxis, names if column == 0 else [], LABEL_SIZE)
    figure.supylabel("query token", fontsize=10)
    figure.supxlabel("key token", fontsize=10)
    figure.colorbar(image, ax=grid, label="attention weight", fraction=0.02, pad=0.01, aspect=30, shrink=0.4)
    caption = CAPTION + (f" Only the first {shown} layers are shown." if shown < n_layer else "")
    return Picture("attention", "Attention", caption, figure, interpret(weights.double().numpy()))


def panel_grid(n_head: int, side: float) -> tuple[int, int]:
    """Rows and columns of panels for the heads of a layer, within the page width."""
    rows = -(-n_head // max(1, int((WIDTH - MARGIN) / side)))
    return rows, -(-n_head // rows)


@torch.no_grad()
def attention_weights(model: Transformer, tokens_BT: Tensor) -> Tensor:
    """Attention weights (layers, B, H, T, T), recomputed from each layer's input."""
    weights = []
    for layer, x_BTC, position, _ in record_inputs(model, Attention, lambda: model(tokens_BT)):
        assert isinstance(layer, Attention)
        assert isinstance(position, Positions)
        q, k, _ = layer.queries_keys_values(x_BTC, position)
        assert position.bias is not None
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        weights.append(torch.softmax(scores + position.bias, dim=-1))
    return torch.stack(weights)


def interpret(weights_LHTT: np.ndarray) -> list[Finding]:
    """Describe heads that mostly attend to one position, or to all positions evenly."""
    findings = [
        Finding("note", f"layer {layer}, head {head} {habit}")
        for layer, head in np.ndindex(weights_LHTT.shape[:2])
        if (habit := _describe_habit(weights_LHTT[layer, head]))
    ]
    return findings or [Finding("note", "no head attends to a fixed position")]


def _describe_habit(weights_TT: np.ndarray) -> str:
    length = len(weights_TT)
    rows = weights_TT[2:]  # the first two tokens have few keys to attend to
    if length < 5:
        return ""
    position_T = np.arange(2, length)
    shares = {
        "the token itself": rows[position_T - 2, position_T].mean(),
        "the previous token": rows[position_T - 2, position_T - 1].mean(),
        "the boundary": rows[:, 0].mean(),
    }
    target, share = max(shares.items(), key=lambda item: item[1])
    if share > MIN_ATTENTION:
        return f"attends to {target} ({share:.0%})"
    entropy = -(rows * np.log(np.maximum(rows, 1e-12))).sum(1) / np.log(position_T + 1)
    return "spreads its attention evenly" if entropy.mean() > 0.95 else ""
