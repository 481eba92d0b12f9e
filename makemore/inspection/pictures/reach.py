"""How far back a prediction looks: what each token before moves it by; for the WaveNet also its tree."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from makemore.inspection.figures import BLUE, GREY, new_figure
from makemore.inspection.subject import Picture, Subject, Verdict
from makemore.models.base import LanguageModel
from makemore.models.wavenet import WaveNet
from makemore.types import IGNORE_INDEX, Batch

TOKENS = 2048
"""Of a batch, which are looked at, in rows of this many at most:"""
LONGEST = 256
POSITIONS = 48
"""Of a row, whose gradients are taken."""
FARTHEST = 64
"""Shown."""
LITTLE = 0.005
"""A share of the influence that isn't worth a word."""
SEEN = 5
MOST_LEAVES = 32
CAPTION = (
    "How much the loss of a token moves with the embedding of the token it is predicted from (0) and of "
    "those before, averaged over a training batch: the length of the gradient, as a share of all. Nothing is "
    "to the right of a model's context."
)
TREE_CAPTION = (
    " The tree shows how the WaveNet joins them: each level two values, twice as far apart as the level "
    "below; the shade of an input is its influence."
)


def draw(subject: Subject) -> Picture | None:
    """None for what has no embedding, or where there is no batch."""
    if subject.batch is None or not isinstance(getattr(subject.model, "embedding", None), nn.Embedding):
        return None
    shares = influence(subject.model, subject.batch)
    tree = isinstance(subject.model, WaveNet) and subject.model.config.block_size <= MOST_LEAVES
    figure = new_figure(8, 7 if tree else 3.6)
    parts = figure.subplots(2 if tree else 1, 1, squeeze=False)[:, 0]
    limit = subject.model.max_len
    shown = shares[: min(FARTHEST, limit or FARTHEST)]
    parts[0].bar(range(len(shown)), shown, color=BLUE)
    beyond = 1 - shown.sum()
    if beyond > LITTLE:
        said = f"{beyond:.0%} comes from farther back than the {len(shown)} tokens shown"
        parts[0].text(0.98, 0.93, said, fontsize=9, ha="right", va="top", transform=parts[0].transAxes)
    if limit and limit == len(shown):
        parts[0].axvline(limit - 0.5, color="black", linestyle="--", linewidth=1)
        at = {"fontsize": 9, "ha": "right", "va": "top"}
        parts[0].text(limit - 0.6, max(shown), f"context of {limit}", **at)
    parts[0].set_xlim(-0.7, len(shown))
    parts[0].set_xlabel("tokens back (0: the token just read)")
    parts[0].set_ylabel("share of the influence")
    if isinstance(subject.model, WaveNet) and tree:
        _draw_tree(parts[1], subject.model, shares)
    caption = CAPTION + (TREE_CAPTION if tree else "")
    return Picture("reach", "How far back it looks", caption, figure, judge(subject.model, shares))


def judge(model: LanguageModel, shares: NDArray[np.float64]) -> list[Verdict]:
    """How many tokens make up most of the influence, and whether the context is used."""
    nine = int(np.searchsorted(np.cumsum(shares), 0.9)) + 1
    words = f"nine tenths of the influence come from the last {nine} token{'s' * (nine > 1)}"
    limit = model.max_len
    if limit and limit <= len(shares) and limit > 4 * nine:
        return [Verdict("note", f"{words}, of a context of {limit}: a shorter one may do")]
    if limit and limit > 2 and nine >= 0.9 * limit:
        return [Verdict("note", f"{words}, the whole context: a longer one may help")]
    return [Verdict("note", words)]


def influence(model: LanguageModel, batch: Batch) -> NDArray[np.float64]:
    """(D,) shares by distance, of the tokens at least D back that documents have; they sum to 1.

    The gradient of each position's own loss: one pass backwards where every position has a window of its
    own, else one for each of some positions, evenly chosen.
    """
    inputs_BT, targets_BT = _long_rows(batch)
    nats_BT, embedded = _embedded_loss(model, inputs_BT, targets_BT)
    starts_BT = _starts(inputs_BT, model.boundary_id)
    length = inputs_BT.shape[1]
    total, counted = np.zeros(length), np.zeros(length)
    windows = embedded.ndim == 4
    if windows:
        whole_BTK = torch.autograd.grad(nats_BT.sum(), embedded)[0].norm(dim=-1)
    for t in range(0, length, 1 if windows else -(-length // POSITIONS)):
        if windows:
            back_BD = whole_BTK[:, t].flip(1)
        else:
            (grad,) = torch.autograd.grad(nats_BT[:, t].sum(), embedded, retain_graph=True)
            # Some put boundaries in front.
            back_BD = grad.norm(dim=-1)[:, -length:][:, : t + 1].flip(1)
        reach_B = t - starts_BT[:, t] + 1
        near_BD = torch.arange(back_BD.shape[1]) < reach_B[:, None]
        near_BD &= (targets_BT[:, t] != IGNORE_INDEX)[:, None]
        sums, often = (back_BD * near_BD).double().sum(0).numpy(), near_BD.sum(0).numpy()
        total[: len(sums)] += sums[:length]
        counted[: len(often)] += often[:length]
    enough = int((counted >= min(SEEN, counted[0])).sum())  # far ones are rare, and their means noise
    mean = (total / np.maximum(counted, 1))[:enough]
    return mean / max(mean.sum(), 1e-300)


def _embedded_loss(model: LanguageModel, inputs_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Nats of each target (B, T), and the embeddings they can be differentiated by."""
    embedded: list[Tensor] = []

    def note(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        out = out.detach().requires_grad_()
        embedded.append(out)
        return out

    handle = _embedding(model).register_forward_hook(note)
    try:
        with torch.enable_grad():
            logits = model(inputs_BT)[0]
    finally:
        handle.remove()
    nats = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    )
    return nats.view(targets_BT.shape), embedded[0]


def _embedding(model: LanguageModel) -> nn.Embedding:
    embedding = model.get_submodule("embedding")
    assert isinstance(embedding, nn.Embedding)
    return embedding


def _long_rows(batch: Batch) -> tuple[Tensor, Tensor]:
    """Inputs and targets of the rows with most targets, a few of them, cut where they are very long."""
    lengths = (batch.targets_BT != IGNORE_INDEX).sum(1)
    wanted = max(1, TOKENS // min(LONGEST, batch.inputs_BT.shape[1]))
    rows = lengths.argsort(descending=True, stable=True)[:wanted]
    return batch.inputs_BT[rows, :LONGEST], batch.targets_BT[rows, :LONGEST]


def _starts(inputs_BT: Tensor, boundary_id: int) -> Tensor:
    """(B, T): where each token's document begins in its row."""
    at = torch.arange(inputs_BT.shape[1]).expand(inputs_BT.shape)
    return torch.where(inputs_BT == boundary_id, at, 0).cummax(1).values


def _draw_tree(axes: Any, model: WaveNet, shares: NDArray[np.float64]) -> None:
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
    inputs = axes.scatter(
        last - np.arange(size),
        np.zeros(size),
        c=shares,
        cmap="Blues",
        s=110,
        edgecolors="black",
        vmin=0,
        zorder=3,
    )
    axes.figure.colorbar(inputs, ax=axes, label="share of the influence", shrink=0.8)
    axes.set_xlim(-0.7, size + max(2.5, size / 4))
    marked = range(last, -1, -1 if size <= 16 else -2)
    axes.set_xticks(marked, [str(last - i) for i in marked], fontsize=8)
    axes.set_yticks([])
    axes.set_xlabel("tokens back")
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
