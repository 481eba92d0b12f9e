"""Token embeddings projected onto two dimensions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import nn

from makemore.inspection.figures import BLUE, DARK, GREEN, ORANGE, RED, label, new_figure
from makemore.inspection.subject import Finding, Picture, Subject
from makemore.types import Floats, Ints

MAX_LABELS = 100
SHUFFLES = 200
CAPTION = (
    "Each token's embedding, projected onto the first two principal components (Pearson 1901). Nearby tokens "
    "are treated alike. The axis labels give the share of the variance that each axis shows."
)
KINDS = (("vowel", RED), ("consonant", BLUE), ("capital", GREEN), ("digit", ORANGE), ("other", DARK))


class Projection(NamedTuple):
    """The first two principal components of the rows of a matrix."""

    points_V2: Floats
    shares_2: Floats
    """Fractions of the variance."""


def project(rows_VC: Floats) -> Projection:
    """Project onto two principal components by SVD; each component's largest entry is positive."""
    centred = rows_VC - rows_VC.mean(0)
    u, s, vt = np.linalg.svd(centred, full_matrices=False)
    u, s, vt = (np.pad(u, ((0, 0), (0, 2)))[:, :2], np.pad(s, (0, 2)), np.pad(vt, ((0, 2), (0, 0)))[:2])
    signs = np.where(vt[np.arange(2), np.abs(vt).argmax(1)] < 0, -1.0, 1.0)
    total = float((s**2).sum()) or 1.0
    return Projection(u * s[:2] * signs, s[:2] ** 2 / total)


def plot(subject: Subject) -> Picture | None:
    """Plot the embedding. Returns None for models without an embedding."""
    embedding = getattr(subject.model, "embedding", None)
    if not isinstance(embedding, nn.Embedding):
        return None
    rows_VC = embedding.weight.detach().double().numpy()
    points, shares = project(rows_VC)
    shown = _most_frequent(subject)
    figure = new_figure(8, 7)
    axes = figure.add_subplot()
    names = {int(v): label(subject.tokenizer, int(v)) for v in shown}
    kinds = {v: kind_of(subject.tokenizer.decode([v])) if v else "other" for v in names}
    for kind, colour in KINDS:
        tokens = [v for v in names if kinds[v] == kind]
        if tokens:
            axes.scatter(points[tokens, 0], points[tokens, 1], s=14, color=colour, label=kind)
    coords = place_labels(points[list(names)], np.array([0.055, 0.04]) * np.ptp(points[list(names)], axis=0))
    for (v, name), coord in zip(names.items(), coords, strict=True):
        colour = dict(KINDS)[kinds[v]]
        line = {"arrowstyle": "-", "color": colour, "alpha": 0.35, "linewidth": 0.6}
        axes.annotate(
            name, points[v], coord, color=colour, arrowprops=line, fontsize=11, ha="center", va="center"
        )
    axes.margins(0.08)
    axes.set_xlabel(f"first component ({shares[0]:.0%} of the variance)")
    axes.set_ylabel(f"second component ({shares[1]:.0%})")
    axes.grid(alpha=0.2)
    figure.legend(loc="outside lower center", ncols=5, fontsize=8)
    findings = [explained(shares), *interpret(subject, rows_VC, shown)]
    return Picture("embeddings", "Embeddings", CAPTION, figure, findings)


def explained(shares_2: Floats) -> Finding:
    """How much of the embedding the picture shows."""
    share = float(shares_2.sum())
    warning = "" if share > 0.5 else ": tokens that are close in the picture may be far apart"
    return Finding("note", f"the two axes explain {share:.0%} of the variance{warning}")


def interpret(subject: Subject, rows_VC: Floats, shown: Ints) -> list[Finding]:
    """List the pairs of tokens that are more similar, by cosine, than any pair by chance."""
    rows = rows_VC[shown] - rows_VC.mean(0)
    if len(shown) < 3:
        return []
    chance = chance_similarity(rows)
    cosine = _cosines(rows)
    best = np.argsort(-cosine, axis=None)[:3]
    pairs = [
        f"{label(subject.tokenizer, int(shown[b]))} and {label(subject.tokenizer, int(shown[a]))} "
        f"({cosine[a, b]:.2f})"
        for a, b in zip(*np.unravel_index(best, cosine.shape), strict=True)
        if cosine[a, b] > chance
    ]
    if pairs:
        text = f"most similar embeddings by cosine: {', '.join(pairs)}; by chance, up to {chance:.2f}"
    else:
        text = f"no two embeddings are more similar than by chance (cosine up to {chance:.2f})"
    return [Finding("note", text.replace(r"\$", "$"))]


def chance_similarity(rows_VC: Floats) -> float:
    """Highest cosine of two rows that 95% of matrices stay below, if each column is shuffled."""
    rng = np.random.default_rng(0)
    highest = [_cosines(rng.permuted(rows_VC, axis=0)).max() for _ in range(SHUFFLES)]
    return float(np.quantile(highest, 0.95))


def _cosines(rows_VC: Floats) -> Floats:
    """Cosine of each pair of rows, below the diagonal; -1 elsewhere."""
    rows_VC = rows_VC / np.maximum(np.linalg.norm(rows_VC, axis=1, keepdims=True), 1e-12)
    return np.where(np.tri(len(rows_VC), k=-1, dtype=bool), rows_VC @ rows_VC.T, -1.0)


def kind_of(text: str) -> str:
    """Character class, which sets the colour."""
    first = text.strip()[:1]
    if first.isdigit():
        return "digit"
    if not first.isalpha():
        return "other"
    if first != first.lower():
        return "capital"
    return "vowel" if first in "aeiouyäöüáéíóúàèìòùâêîôûåæø" else "consonant"


def _most_frequent(subject: Subject) -> Ints:
    V = subject.model.vocab_size
    if V <= MAX_LABELS or subject.train is None:
        return np.arange(min(V, MAX_LABELS))
    counts = np.bincount(subject.train.tokens_N[:10_000_000], minlength=V)
    return np.sort(np.argsort(-counts, kind="stable")[:MAX_LABELS])


def place_labels(points_N2: Floats, room_2: Floats, rounds: int = 200) -> Floats:
    """Return positions for labels near their points, pushed apart until boxes of size ``room_2`` don't
    overlap."""
    room_2 = np.maximum(room_2, 1e-9)
    labels = points_N2 + room_2 * np.array([0.0, 0.6])
    rng = np.random.default_rng(0)
    labels = labels + rng.normal(size=labels.shape) * room_2 * 0.01  # break ties between equal positions
    others = 1 - np.eye(len(labels))
    for _ in range(rounds):
        push = _repel(labels, labels, room_2, others) + _repel(labels, points_N2, 0.55 * room_2, 1.0)
        if not push.any():
            break
        labels = labels + 0.5 * push
    return labels


def _repel(labels_N2: Floats, from_M2: Floats, room_2: Floats, weights: Floats | float) -> Floats:
    """(N, 2) pushes away from positions within ``room_2``, times ``weights``."""
    gap = (labels_N2[:, None] - from_M2[None]) / room_2
    overlap = np.maximum(0, 1 - np.abs(gap)).min(-1) * weights
    directions = gap / np.maximum(np.linalg.norm(gap, axis=-1, keepdims=True), 1e-9)
    return (overlap[..., None] * directions).sum(1) * room_2
