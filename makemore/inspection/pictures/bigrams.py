"""Bigrams: counts in the training text, and the model's average predictions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from matplotlib.colors import PowerNorm

from makemore.inspection.figures import labels, new_figure, token_axis
from makemore.inspection.subject import Finding, Picture, Subject
from makemore.models.base import LanguageModel
from makemore.types import IGNORE_INDEX, Batch, Floats, Ints, Split

MAX_TOKENS = 32
CELL = 0.3
"""Inches needed to print a count of four characters."""
MAX_COUNTED = 20_000_000
"""Maximum number of train tokens to count."""
CAPTION = (
    "Rows: current token; columns: next token. Top: frequency of each pair in the training text, with its "
    "count. Bottom: the model's probability, averaged over the positions of a training batch with that "
    "current token. Cells that are strong below and faint above are predictions without support in the text. "
    "Models with longer contexts make individual predictions that are sharper than this average."
)


def plot(subject: Subject) -> Picture | None:
    """Plot the bigrams. Returns None if the training text isn't available."""
    if subject.train is None or subject.batch is None:
        return None
    pairs = pairs_of(subject.train, subject.model.boundary_id)
    shown = _most_frequent(pairs, subject.model.vocab_size)
    counts = pair_counts(pairs, shown, subject.model.vocab_size)
    predictions = mean_predictions(subject.model, subject.batch, shown)
    names = labels(subject.tokenizer, shown)
    side = max(4.5, CELL * len(names))
    figure = new_figure(side + 1.6, 2 * (side + 0.7))
    top, bottom = figure.subplots(2, 1)
    shown_counts, totals = counts[:, shown], counts.sum(1)
    # Square-root scale, because most cells would be too pale otherwise.
    scale = PowerNorm(0.5, 0, 1)
    top.imshow(shown_counts / np.maximum(totals, 1)[:, None], cmap="Blues", norm=scale)
    _write_counts(top, shown_counts, totals)
    image = bottom.imshow(predictions[:, shown], cmap="Blues", norm=scale)
    for axes, title in ((top, "counted in train"), (bottom, "predicted by the model")):
        axes.set(title=title, xlabel="next token", ylabel="current token")
        token_axis(axes.xaxis, names)
        token_axis(axes.yaxis, names)
    bar = figure.colorbar(image, ax=(top, bottom), fraction=0.03, pad=0.02, shrink=0.4)
    bar.set_label("fraction of the row")
    bar.set_ticks([0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 1])
    return Picture("bigrams", "Bigrams", CAPTION, figure, interpret(counts, predictions))


def pairs_of(train: Split, boundary_id: int) -> tuple[Ints, Ints]:
    """(N,) current tokens of train and (N,) next tokens."""
    targets = np.asarray(train.tokens_N[:MAX_COUNTED], np.int64)
    inputs = train.inputs_at(np.arange(len(targets)), boundary_id)
    return inputs, targets


def pair_counts(pairs: tuple[Ints, Ints], rows_R: Ints, vocab_size: int) -> Floats:
    """(R, V) counts of next tokens after each token of ``rows_R``, which are distinct."""
    inputs, targets = pairs
    row_V = np.full(vocab_size, -1)
    row_V[rows_R] = np.arange(len(rows_R))
    is_counted = row_V[inputs] >= 0
    flat = row_V[inputs[is_counted]] * vocab_size + targets[is_counted]
    counts = np.bincount(flat, minlength=len(rows_R) * vocab_size)
    return counts.reshape(len(rows_R), vocab_size).astype(np.float64)


@torch.no_grad()
def mean_predictions(model: LanguageModel, batch: Batch, rows_R: Ints) -> Floats:
    """(R, V) mean predicted distribution after each token; NaN for tokens that aren't in the batch."""
    valid_BT = batch.targets_BT != IGNORE_INDEX
    logits_BTV = model(batch.inputs_BT)[0]
    means = np.full((len(rows_R), model.vocab_size), math.nan)
    for mean_V, token in zip(means, rows_R.tolist(), strict=True):
        logits_NV = logits_BTV[valid_BT & (batch.inputs_BT == token)]
        if len(logits_NV):
            mean_V[:] = logits_NV.float().softmax(-1).double().mean(0).numpy()
    return means


def interpret(counts: Floats, means: Floats) -> list[Finding]:
    """Report the KL divergence of the average predictions from the counts."""
    totals = counts.sum(1)
    has_data = (totals > 0) & ~np.isnan(means[:, 0])
    p = counts[has_data] / totals[has_data, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        kl = np.where(p > 0, p * np.log(p / np.maximum(means[has_data], 1e-12)), 0.0).sum(1)
    mean = float((kl * totals[has_data]).sum() / totals[has_data].sum())
    text = f"average predictions differ from the bigram counts by {mean:.3f} nats (KL divergence)"
    if mean < 0.05:
        return [Finding("good", f"{text}: the bigrams are learned")]
    if mean < 0.3:
        return [Finding("note", text)]
    return [Finding("warning", f"{text}: not all bigrams are learned")]


def _most_frequent(pairs: tuple[Ints, Ints], vocab_size: int) -> Ints:
    inputs, targets = pairs
    counts = np.bincount(inputs, minlength=vocab_size) + np.bincount(targets, minlength=vocab_size)
    top = np.argsort(-counts, kind="stable")[:MAX_TOKENS]
    return np.sort(top[counts[top] > 0])


def _write_counts(axes: Any, shown_counts: Floats, totals: Floats) -> None:
    is_dark = shown_counts > 0.25 * np.maximum(totals, 1)[:, None]
    for (row, column), count in np.ndenumerate(shown_counts):
        if count:
            colour = "white" if is_dark[row, column] else "#333333"
            axes.text(column, row, short(count), ha="center", va="center", fontsize=7, color=colour)


def short(count: float) -> str:
    """Format a count below a million in at most four characters."""
    if count < 1000:
        return f"{count:.0f}"
    return f"{count / 1000:.1f}k" if count < 9950 else f"{count / 1000:.0f}k"
