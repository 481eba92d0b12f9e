"""Embeddings in two dimensions: which tokens the model takes for alike."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from makemore.inspection.figures import BLUE, DARK, GREEN, ORANGE, RED, label, new_figure
from makemore.inspection.subject import Picture, Subject, Verdict

MOST_LABELS = 100
CAPTION = (
    "Each token's embedding, projected onto the two directions in which embeddings differ most (principal "
    "components, Pearson 1901). Tokens that stand close are used alike. Nearness here is not all of it: the "
    "axes say what share of the variance they show."
)
KINDS = (("vowel", RED), ("consonant", BLUE), ("capital", GREEN), ("digit", ORANGE), ("other", DARK))

Floats = NDArray[np.float64]


class Projection(NamedTuple):
    """Principal components of the rows of a matrix."""

    points_V2: Floats
    shares_2: Floats
    """Of the variance."""


def project(rows_VC: Floats) -> Projection:
    """The first two principal components, by singular values; signs so that the longest entry is positive."""
    centred = rows_VC - rows_VC.mean(0)
    u, s, vt = np.linalg.svd(centred, full_matrices=False)
    u, s, vt = (np.pad(u, ((0, 0), (0, 2)))[:, :2], np.pad(s, (0, 2)), np.pad(vt, ((0, 2), (0, 0)))[:2])
    signs = np.where(vt[np.arange(2), np.abs(vt).argmax(1)] < 0, -1.0, 1.0)
    total = float((s**2).sum()) or 1.0
    return Projection(u * s[:2] * signs, s[:2] ** 2 / total)


def draw(subject: Subject) -> Picture | None:
    """None for what has no embedding."""
    embedding = getattr(subject.model, "embedding", None)
    if not isinstance(embedding, nn.Embedding):
        return None
    rows_VC = embedding.weight.detach().double().numpy()
    points, shares = project(rows_VC)
    shown = _frequent(subject)
    figure = new_figure(8, 7)
    axes = figure.add_subplot()
    names = {int(v): label(subject.tokenizer, int(v)) for v in shown}
    kinds = {v: kind_of(subject.tokenizer.decode([v])) if v else "other" for v in names}
    for kind, colour in KINDS:
        found = [v for v in names if kinds[v] == kind]
        if found:
            axes.scatter(points[found, 0], points[found, 1], s=14, color=colour, label=kind)
    places = spread(points[list(names)], np.array([0.055, 0.04]) * np.ptp(points[list(names)], axis=0))
    for (v, name), place in zip(names.items(), places, strict=True):
        colour = dict(KINDS)[kinds[v]]
        axes.annotate(
            name,
            points[v],
            place,
            color=colour,
            fontsize=11,
            ha="center",
            va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "alpha": 0.35, "linewidth": 0.6},
        )
    axes.margins(0.08)
    axes.set_xlabel(f"first component ({shares[0]:.0%} of the variance)")
    axes.set_ylabel(f"second component ({shares[1]:.0%})")
    axes.grid(alpha=0.2)
    figure.legend(loc="outside lower center", ncols=5, fontsize=8)
    return Picture("embeddings", "Embeddings", CAPTION, figure, judge(subject, rows_VC, shown))


def judge(subject: Subject, rows_VC: Floats, shown: NDArray[np.int64]) -> list[Verdict]:
    """The pairs of tokens whose embeddings are most alike, by the angle between them."""
    rows = rows_VC[shown] - rows_VC.mean(0)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    cosine = np.tril(rows @ rows.T, -1)
    best = np.argsort(-cosine, axis=None)[:3]
    said = ", ".join(
        f"{label(subject.tokenizer, int(shown[b]))} and {label(subject.tokenizer, int(shown[a]))} "
        f"({cosine[a, b]:.2f})"
        for a, b in zip(*np.unravel_index(best, cosine.shape), strict=True)
        if a != b
    )
    said = f"most alike to the model, by cosine: {said}".replace(r"\$", "$")
    return [Verdict("note", said)] if len(shown) > 1 else []


def kind_of(text: str) -> str:
    """A class for the colour."""
    first = text.strip()[:1]
    if first.isdigit():
        return "digit"
    if not first.isalpha():
        return "other"
    if first != first.lower():
        return "capital"
    return "vowel" if first in "aeiouyäöüáéíóúàèìòùâêîôûåæø" else "consonant"


def _frequent(subject: Subject) -> NDArray[np.int64]:
    """At most so many tokens, the most frequent in train."""
    V = subject.vocab_size
    if V <= MOST_LABELS or subject.train is None:
        return np.arange(min(V, MOST_LABELS))
    counts = np.bincount(subject.train.tokens_N[:10_000_000], minlength=V)
    return np.sort(np.argsort(-counts, kind="stable")[:MOST_LABELS])


def spread(points_N2: Floats, room_2: Floats, rounds: int = 200) -> Floats:
    """Places for labels near their points, pushed apart until none stands in another's room
    or on a point."""
    room_2 = np.maximum(room_2, 1e-9)
    places = points_N2 + room_2 * np.array([0.0, 0.6])
    rng = np.random.default_rng(0)
    places = places + rng.normal(size=places.shape) * room_2 * 0.01  # of two in one place, one has to go
    others = 1 - np.eye(len(places))
    for _ in range(rounds):
        push = _away(places, places, room_2, others) + _away(places, points_N2, 0.55 * room_2, 1.0)
        if not push.any():
            break
        places = places + 0.5 * push
    return places


def _away(places_N2: Floats, from_M2: Floats, room_2: Floats, counts: Floats | float) -> Floats:
    """(N, 2) pushes away from all that stands within ``room_2``, and counts."""
    gap = (places_N2[:, None] - from_M2[None]) / room_2
    near = np.maximum(0, 1 - np.abs(gap)).min(-1) * counts
    directions = gap / np.maximum(np.linalg.norm(gap, axis=-1, keepdims=True), 1e-9)
    return (near[..., None] * directions).sum(1) * room_2
