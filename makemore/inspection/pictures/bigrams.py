"""Which token follows which: as the training text has it, and as the model predicts it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from matplotlib.colors import PowerNorm
from numpy.typing import NDArray

from makemore.inspection.figures import labels, new_figure, token_axis
from makemore.inspection.subject import Picture, Subject, Verdict
from makemore.models.base import LanguageModel
from makemore.types import IGNORE_INDEX, Batch, Split

MOST_TOKENS = 32
CELL = 0.3
"""Inches that a count of four characters needs."""
COUNTED = 20_000_000
"""Tokens of train that are counted."""
CAPTION = (
    "Rows: the token just read; columns: the next one. Above, how often each pair stands in the training "
    "text, with its count; below, the probability that the model gives, averaged over places of a training "
    "batch where that token was just read. What is dark below and pale above the model made up. "
    "Where a model looks further back, its single predictions are sharper than this average."
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def draw(subject: Subject) -> Picture | None:
    """None where the text isn't at hand."""
    if subject.train is None or subject.batch is None:
        return None
    pairs = pairs_of(subject.train, subject.model.boundary_id)
    shown = _frequent(pairs, subject.vocab_size)
    counts = pair_counts(pairs, shown, subject.vocab_size)
    means = mean_predictions(subject.model, subject.batch, shown)
    names = labels(subject.tokenizer, shown)
    side = max(4.5, CELL * len(names))
    figure = new_figure(side + 1.6, 2 * (side + 0.7))
    above, below = figure.subplots(2, 1)
    part, totals = counts[:, shown], counts.sum(1)
    # The root of a share: else most would be too pale to see.
    scale = PowerNorm(0.5, 0, 1)
    above.imshow(part / np.maximum(totals, 1)[:, None], cmap="Blues", norm=scale)
    _write_counts(above, part, totals)
    image = below.imshow(means[:, shown], cmap="Blues", norm=scale)
    for axes, title in ((above, "counted in train"), (below, "predicted by the model")):
        axes.set_title(title)
        token_axis(axes.xaxis, names)
        token_axis(axes.yaxis, names)
        axes.set_xlabel("next token")
        axes.set_ylabel("token just read")
    figure.colorbar(
        image,
        ax=(above, below),
        label="share of the row",
        fraction=0.03,
        pad=0.02,
        shrink=0.4,
        ticks=[0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 1],
    )
    return Picture("bigrams", "What follows what", CAPTION, figure, judge(counts, means))


def pairs_of(train: Split, boundary_id: int) -> tuple[Ints, Ints]:
    """(N,) tokens of train that were just read, and (N,) those that came next."""
    targets = np.asarray(train.tokens_N[:COUNTED], np.int64)
    inputs = train.inputs_at(np.arange(len(targets)), boundary_id)
    starts = train.starts_D[train.starts_D < len(targets)]
    inputs[starts] = boundary_id
    return inputs, targets


def pair_counts(pairs: tuple[Ints, Ints], rows_R: Ints, vocab_size: int) -> Floats:
    """(R, V): how often the column's token follows the row's; ``rows_R``: tokens, each once."""
    inputs, targets = pairs
    place_V = np.full(vocab_size, -1)
    place_V[rows_R] = np.arange(len(rows_R))
    counted = place_V[inputs] >= 0
    flat = place_V[inputs[counted]] * vocab_size + targets[counted]
    counts = np.bincount(flat, minlength=len(rows_R) * vocab_size)
    return counts.reshape(len(rows_R), vocab_size).astype(np.float64)


@torch.no_grad()
def mean_predictions(model: LanguageModel, batch: Batch, rows_R: Ints) -> Floats:
    """(R, V): the mean distribution after each of some tokens in a batch; NaN where they aren't in it."""
    valid_BT = batch.targets_BT != IGNORE_INDEX
    logits_BTV = model(batch.inputs_BT)[0]
    means = np.full((len(rows_R), model.vocab_size), math.nan)
    for mean_V, token in zip(means, rows_R.tolist(), strict=True):
        logits_NV = logits_BTV[valid_BT & (batch.inputs_BT == token)]
        if len(logits_NV):
            mean_V[:] = logits_NV.float().softmax(-1).double().mean(0).numpy()
    return means


def judge(counts: Floats, means: Floats) -> list[Verdict]:
    """How far the model's averages are from the counts, and which pair is farthest."""
    often = counts.sum(1)
    seen = (often > 0) & ~np.isnan(means[:, 0])
    p = counts[seen] / often[seen, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = np.where(p > 0, p * np.log(p / np.maximum(means[seen], 1e-12)), 0.0).sum(1)
    mean = float((apart * often[seen]).sum() / often[seen].sum())
    said = f"averaged over contexts, its predictions are {mean:.3f} nats from the counted pairs"
    if mean < 0.05:
        return [Verdict("good", f"{said}: it knows them")]
    return [Verdict("note" if mean < 0.3 else "warning", f"{said}: it has not learned them all")]


def _frequent(pairs: tuple[Ints, Ints], vocab_size: int) -> Ints:
    """At most so many tokens, the most frequent, in the order of their ids."""
    inputs, targets = pairs
    often = np.bincount(inputs, minlength=vocab_size) + np.bincount(targets, minlength=vocab_size)
    present = np.argsort(-often, kind="stable")[:MOST_TOKENS]
    return np.sort(present[often[present] > 0])


def _write_counts(axes: Any, part: Floats, totals: Floats) -> None:
    dark = part > 0.25 * np.maximum(totals, 1)[:, None]
    for (row, column), count in np.ndenumerate(part):
        if count:
            colour = "white" if dark[row, column] else "#333333"
            axes.text(column, row, short(count), ha="center", va="center", fontsize=7, color=colour)


def short(count: float) -> str:
    """At most four characters up to a million."""
    if count < 1000:
        return f"{count:.0f}"
    return f"{count / 1000:.1f}k" if count < 9950 else f"{count / 1000:.0f}k"
