"""Influence of earlier tokens on a prediction by distance, and the WaveNet's tree."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from makemore.evaluation.scoring import target_nats
from makemore.inspection.figures import BLUE, DASHED, GREY, new_figure
from makemore.inspection.subject import Finding, Picture, Subject
from makemore.models.base import LanguageModel
from makemore.models.wavenet import WaveNet
from makemore.types import IGNORE_INDEX, Batch, Floats

TOKENS = 2048
"""Tokens of a batch to use, in rows of at most ``MAX_ROW_LENGTH``."""
MAX_ROW_LENGTH = 256
MAX_POSITIONS = 48
"""Positions per row whose gradients are computed."""
MAX_DISTANCE = 64
"""Largest distance in the plot."""
MIN_SHARE = 0.005
"""Share of the influence that isn't worth reporting."""
MIN_COUNT = 5
MAX_LEAVES = 32
CAPTION = (
    "Gradient norm of a token's loss in the embedding of the current token (0) and of earlier ones, averaged "
    "over a training batch, as a share of the total. The share is zero beyond a model's context."
)
TREE_CAPTION = (
    " The tree shows how the WaveNet combines tokens: each level joins two values, twice as far apart as on "
    "the level below; the shade of an input is its influence."
)


def plot(subject: Subject) -> Picture | None:
    """Plot the influence. Returns None for models without an embedding, or without a batch."""
    if subject.batch is None or not isinstance(getattr(subject.model, "embedding", None), nn.Embedding):
        return None
    shares = influence(subject.model, subject.batch)
    has_tree = isinstance(subject.model, WaveNet) and subject.model.config.block_size <= MAX_LEAVES
    figure = new_figure(8, 7 if has_tree else 3.6)
    axes, *below = figure.subplots(2 if has_tree else 1, 1, squeeze=False)[:, 0]
    limit = subject.model.max_len
    shown = shares[: min(MAX_DISTANCE, limit or MAX_DISTANCE)]
    axes.bar(range(len(shown)), shown, color=BLUE)
    beyond, style = 1 - shown.sum(), {"fontsize": 9, "ha": "right", "va": "top"}
    if beyond > MIN_SHARE:
        note = f"{beyond:.0%} comes from farther back than the {len(shown)} tokens shown"
        axes.text(0.98, 0.93, note, transform=axes.transAxes, **style)
    if limit and limit == len(shown):
        axes.axvline(limit - 0.5, **DASHED)
        axes.text(limit - 0.6, max(shown), f"context of {limit}", **style)
    axes.set_xlim(-0.7, len(shown))
    axes.set(xlabel="tokens back (0: current token)", ylabel="share of the influence")
    if isinstance(subject.model, WaveNet) and has_tree:
        _draw_tree(below[0], subject.model, shares)
    caption = CAPTION + (TREE_CAPTION if has_tree else "")
    return Picture("reach", "Influence by distance", caption, figure, interpret(subject.model, shares))


def interpret(model: LanguageModel, shares: Floats) -> list[Finding]:
    """Report how many tokens carry 90% of the influence, and whether the context is used."""
    n_tokens = int(np.searchsorted(np.cumsum(shares), 0.9)) + 1
    text = f"90% of the influence comes from the last {n_tokens} token{'s' * (n_tokens > 1)}"
    limit = model.max_len
    if limit and limit <= len(shares) and limit > 4 * n_tokens:
        return [Finding("note", f"{text}, of a context of {limit}: a shorter context may suffice")]
    if limit and limit > 2 and n_tokens >= 0.9 * limit:
        return [Finding("note", f"{text}, the whole context: a longer context may help")]
    return [Finding("note", text)]


def influence(model: LanguageModel, batch: Batch) -> Floats:
    """(D,) shares by distance, which sum to 1; each is a mean over tokens with that much context.

    Norms of the gradient of each position's own loss: one backward pass where every position has its own
    window, otherwise one for each of ``MAX_POSITIONS`` evenly spaced positions.
    """
    inputs_BT, targets_BT = _long_rows(batch)
    nats_BT, embedded = _embedded_loss(model, inputs_BT, targets_BT)
    starts_BT = _starts(inputs_BT, model.boundary_id)
    length = inputs_BT.shape[1]
    total, count = np.zeros(length), np.zeros(length)
    has_windows = embedded.ndim == 4
    if has_windows:
        norms_BTK = torch.autograd.grad(nats_BT.sum(), embedded)[0].norm(dim=-1)
    for t in range(0, length, 1 if has_windows else -(-length // MAX_POSITIONS)):
        if has_windows:
            back_BD = norms_BTK[:, t].flip(1)
        else:
            (grad,) = torch.autograd.grad(nats_BT[:, t].sum(), embedded, retain_graph=True)
            # Some models prepend boundary tokens.
            back_BD = grad.norm(dim=-1)[:, -length:][:, : t + 1].flip(1)
        reach_B = t - starts_BT[:, t] + 1
        valid_BD = torch.arange(back_BD.shape[1]) < reach_B[:, None]
        valid_BD &= (targets_BT[:, t] != IGNORE_INDEX)[:, None]
        sums, counts = (back_BD * valid_BD).double().sum(0).numpy(), valid_BD.sum(0).numpy()
        total[: len(sums)] += sums[:length]
        count[: len(counts)] += counts[:length]
    n_distances = int((count >= min(MIN_COUNT, count[0])).sum())  # large distances are rare and noisy
    mean = (total / np.maximum(count, 1))[:n_distances]
    return mean / max(mean.sum(), 1e-300)


def _embedded_loss(model: LanguageModel, inputs_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of each target (B, T) in nats, and the embeddings as a leaf of the graph."""
    embedded: list[Tensor] = []

    def make_leaf(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        out = out.detach().requires_grad_()
        embedded.append(out)
        return out

    with model.get_submodule("embedding").register_forward_hook(make_leaf), torch.enable_grad():
        return target_nats(model(inputs_BT)[0], targets_BT), embedded[0]


def _long_rows(batch: Batch) -> tuple[Tensor, Tensor]:
    """Inputs and targets of the rows with the most targets, cut to ``MAX_ROW_LENGTH`` tokens."""
    lengths = (batch.targets_BT != IGNORE_INDEX).sum(1)
    n_rows = max(1, TOKENS // min(MAX_ROW_LENGTH, batch.inputs_BT.shape[1]))
    rows = lengths.argsort(descending=True, stable=True)[:n_rows]
    return batch.inputs_BT[rows, :MAX_ROW_LENGTH], batch.targets_BT[rows, :MAX_ROW_LENGTH]


def _starts(inputs_BT: Tensor, boundary_id: int) -> Tensor:
    """(B, T): index of the start of each token's document in its row."""
    index = torch.arange(inputs_BT.shape[1]).expand(inputs_BT.shape)
    return torch.where(inputs_BT == boundary_id, index, 0).cummax(1).values


def _draw_tree(axes: Any, model: WaveNet, shares: Floats) -> None:
    size = model.config.block_size
    shares = np.pad(shares, (0, size))[:size]
    last = size - 1
    for level, dilation in enumerate(model.dilations):
        step = 2 * dilation
        for right in range(last, -1, -step):
            for source in (right - dilation, right):
                axes.plot([source, right], [level, level + 1], color=GREY, linewidth=1, zorder=1)
            axes.plot(right, level + 1, "s", color="black", markersize=6, zorder=2)
        axes.text(size + 0.2, level + 1, f"level {level + 1}: {step} tokens", va="center", fontsize=9)
    style = {"cmap": "Blues", "s": 110, "edgecolors": "black", "vmin": 0, "zorder": 3}
    inputs = axes.scatter(last - np.arange(size), np.zeros(size), c=shares, **style)
    axes.figure.colorbar(inputs, ax=axes, label="share of the influence", shrink=0.8)
    ticks = range(last, -1, -1 if size <= 16 else -2)
    axes.set_xticks(ticks, [str(last - i) for i in ticks], fontsize=8)
    axes.set(xlim=(-0.7, size + max(2.5, size / 4)), xlabel="tokens back", yticks=[])
    axes.spines[["left", "right", "top"]].set_visible(False)
