"""Which contexts context mixing trusts, and when."""

from __future__ import annotations

import numpy as np

from makemore.inspection.figures import new_figure
from makemore.inspection.subject import Finding, Picture, Subject
from makemore.models.context_mixing import ContextMixing, memory
from makemore.types import Floats

ORDER_SET = 3
"""The set of weights selected by the longest context seen before, how often, and the decision's depth."""
ROWS_PER_ORDER = 32 * 4
INITIAL_WEIGHT = 0.02
CAPTION = (
    "Weight of each context's evidence, by the longest context that had been seen in training (rows), "
    "averaged over the situations that occurred. On: n tokens; W: words, and words before; F: tokens without "
    "case; S: tokens with gaps; L: place in the line, and the line above. Red: evidence that is subtracted, "
    "because other contexts contain it."
)


def plot(subject: Subject) -> Picture | None:
    """Plot the weights. Returns None unless the model is context mixing."""
    if not isinstance(subject.model, ContextMixing):
        return None
    weights_OC = context_weights(subject.model)
    figure = new_figure(11, 4.4)
    axes = figure.add_subplot()
    limit = max(float(np.nanmax(np.abs(weights_OC), initial=0)), 1e-6)
    image = axes.imshow(weights_OC, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    figure.colorbar(image, label="weight")
    axes.set_xticks(range(memory.N_CONTEXTS), memory.CONTEXTS, rotation=90, fontsize=8)
    axes.set_yticks(range(len(weights_OC)), ["none", *map(str, memory.ORDERS)], fontsize=8)
    axes.set(xlabel="context", ylabel="longest context seen (tokens)")
    return Picture("contexts", "Which contexts are trusted", CAPTION, figure, interpret(weights_OC))


def context_weights(model: ContextMixing) -> Floats:
    """(orders + 1, contexts): mean weight of each context's inputs; NaN in situations that never occurred."""
    begin = sum(memory.set_rows(model.vocab_size)[:ORDER_SET])
    weights = model.state_dict()["weights"].numpy().astype(np.float64)
    rows = []
    for order in range(memory.N_ORDERS + 1):
        first = begin + order * ROWS_PER_ORDER
        part = weights[first : first + ROWS_PER_ORDER, : 3 * memory.N_CONTEXTS]
        used = part[(np.abs(part - INITIAL_WEIGHT) > 1e-6).any(axis=1)]
        unknown = np.full(3 * memory.N_CONTEXTS, np.nan)
        rows.append(used.mean(axis=0) if len(used) else unknown)
    return np.stack(rows).reshape(len(rows), 3, memory.N_CONTEXTS).sum(axis=1)


def interpret(weights_OC: Floats) -> list[Finding]:
    """Name the most trusted contexts after a short and after a long repeated passage."""
    findings = []
    known = [order for order in range(1, len(weights_OC)) if np.isfinite(weights_OC[order]).all()]
    for order in dict.fromkeys([*known[:1], *known[-1:]]):
        best = np.argsort(-weights_OC[order])[:3]
        names = ", ".join(memory.CONTEXTS[c] for c in best)
        length = memory.ORDERS[order - 1]
        text = f"after at most {length} known token{'s' * (length > 1)}, {names} are trusted most"
        findings.append(Finding("note", text))
    return findings
