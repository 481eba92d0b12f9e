"""Contribution of each n-gram order of a count model."""

from __future__ import annotations

import numpy as np

from makemore.inspection.figures import BLUE, GREEN, ORANGE, new_figure
from makemore.inspection.subject import Finding, Picture, Subject
from makemore.models.count import Count
from makemore.models.ngrams.table import ABSENT, Nodes
from makemore.models.smoothing import SmoothedNgrams
from makemore.types import Floats, Ints, Split

TOKENS = 200_000
CAPTION = (
    "Left: loss on val when longer n-grams are left out; the star marks the model's order. Right, averaged "
    "over val: each order's share of the actual token's probability (blue), and how often the longest "
    "context seen in training had that order (orange)."
)


def plot(subject: Subject) -> Picture | None:
    """Plot the orders. Returns None unless the model is a count model with a val split."""
    if not isinstance(subject.model, Count) or subject.val is None or not len(subject.val.tokens_N):
        return None
    model = subject.model
    contexts, targets_N = positions(model, subject.val)
    losses = order_losses(model, contexts, targets_N)
    shares, longest = contributions(model.smoothed, contexts, targets_N)
    figure = new_figure(9, 3.8)
    left, right = figure.subplots(1, 2)
    orders = np.arange(1, model.order + 1)
    left.plot(orders, losses, "o-", color=BLUE)
    left.plot(model.order, losses[-1], "*", color=GREEN, markersize=15)
    left.set(xlabel="longest n-gram used (tokens)", ylabel="loss on val (nats per token)", xticks=orders)
    left.grid(alpha=0.3)
    right.bar(np.arange(model.order + 1) - 0.2, shares, 0.4, color=BLUE, label="share of the probability")
    right.bar(orders + 0.2, longest, 0.4, color=ORANGE, label="longest known context")
    right.set_xticks(range(model.order + 1), ["any", *map(str, orders)])
    right.set(xlabel="order in tokens (any: uniform)", ylabel="share, averaged over val")
    right.legend(fontsize=8)
    return Picture("orders", "What each order contributes", CAPTION, figure, interpret(losses, shares))


def interpret(losses: Floats, shares: Floats) -> list[Finding]:
    """Name the order with the largest share, and the gain from the longest n-grams."""
    main = int(shares.argmax())
    text = f"order {main} gives the largest share of the probability ({shares[main]:.0%})"
    findings = [Finding("note", text)]
    if len(losses) > 1:
        gain = float(losses[-2] - losses[-1])
        text = "the longest n-grams reduce the loss by"
        small = Finding("note", f"{text} {gain:.4f} nats; lower the order")
        findings.append(small if gain < 0.002 else Finding("good", f"{text} {gain:.3f} nats"))
    return findings


def positions(model: Count, split: Split) -> tuple[list[Nodes], Ints]:
    """Contexts of every order, as in ``NgramTable.contexts``, and targets of a split."""
    targets_N = np.asarray(split.tokens_N[:TOKENS], np.int64)
    inputs_N = split.inputs_at(np.arange(len(targets_N)), model.boundary_id)
    return model.table.contexts(inputs_N), targets_N


def order_losses(model: Count, contexts: list[Nodes], targets_N: Ints) -> Floats:
    """(order,) mean loss in nats with n-grams up to each order."""
    losses = []
    with np.errstate(divide="ignore"):
        for order in range(1, model.order + 1):
            smoothed = SmoothedNgrams(model.table, model.config.replace(order=order))
            losses.append(-np.log(smoothed.target_probs(contexts, targets_N)).mean())
    return np.array(losses)


def contributions(smoothed: SmoothedNgrams, contexts: list[Nodes], targets_N: Ints) -> tuple[Floats, Floats]:
    """(order + 1,) mean share of each order in the targets' probability, the uniform floor first;
    (order,) how often the longest known context has each order."""
    parts = [smoothed.uniform_V[targets_N]]
    longest_N = np.zeros(len(targets_N), np.int64)
    for m, nodes_N in enumerate(contexts):
        if not smoothed.backs_off:
            for part in parts[1:]:
                part[nodes_N != ABSENT] = 0.0
            parts[0] = np.where(nodes_N == ABSENT, parts[0], smoothed.uniform_V[targets_N])
        for part in parts:
            part *= smoothed.backoff_weights_C[nodes_N]
        parts.append(smoothed.shares_G[smoothed.table.find(nodes_N, targets_N)].astype(np.float64))
        longest_N[nodes_N >= 0] = m
    total = sum(parts)
    shares = np.array([(part / np.maximum(total, 1e-300)).mean() for part in parts])
    frequencies = np.bincount(longest_N, minlength=len(contexts)) / max(len(targets_N), 1)
    return shares, frequencies
