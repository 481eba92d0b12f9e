"""Sizes of updates relative to the weights."""

from __future__ import annotations

import re

import numpy as np

from makemore.inspection.figures import DASHED, new_figure
from makemore.inspection.subject import Finding, Picture, Subject, Update

MIN_LOG_RATIO, MAX_LOG_RATIO = -4.5, -1.0
"""log10 of the ratios below and above which to warn."""
MIN_STEPS = 40
"""Minimum number of steps: at first, zero-initialised matrices change by much of their own size."""
CAPTION = (
    "The first training steps, replayed: each step's change of a matrix relative to its values (ratio of "
    "standard deviations, log10). About 0.001 per step, the dashed line, is typical of AdamW; Muon takes "
    "larger steps. Far below, a layer learns too slowly; far above, it forgets what it knew. Matrices with "
    "the same role in different layers share a colour."
)


def plot(subject: Subject) -> Picture | None:
    """Plot the updates. Returns None if no steps were replayed."""
    updates = [u for u in subject.updates if np.isfinite(u.ratio_S).any()]
    if not updates:
        return None
    kinds = list(dict.fromkeys(kind_of(u.name) for u in updates))
    figure = new_figure(9, max(4.5, 0.17 * len(kinds) + 1.5))
    axes = figure.add_subplot()
    labels = dict(enumerate(kinds))  # one for the first line of each kind
    for update in updates:
        nth = kinds.index(kind_of(update.name))
        steps, style = range(1, len(update.ratio_S) + 1), f"C{nth % 10}{'-' if nth < 10 else '--'}"
        axes.plot(steps, np.log10(update.ratio_S), style, linewidth=1.2, label=labels.pop(nth, None))
    axes.axhline(-3, label="0.001", **DASHED)
    axes.set(xlabel="step", ylabel="update / values (log10)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=7)
    return Picture("updates", "Update sizes", CAPTION, figure, interpret(updates))


def kind_of(name: str) -> str:
    """Replace the layer number in a parameter's name with a star, so layers share a colour."""
    return re.sub(r"^(\w+)\.\d+\.", r"\1.*.", name)


def interpret(updates: list[Update]) -> list[Finding]:
    """Report matrices with very small or very large updates over the last quarter of the steps."""
    steps = max((len(update.ratio_S) for update in updates), default=0)
    if steps < MIN_STEPS:
        return [Finding("note", f"the {steps} replayed steps are too few to judge update sizes")]
    log_ratios = {}
    for update in updates:
        late = update.ratio_S[-(len(update.ratio_S) // 4) :]
        late = late[np.isfinite(late) & (late > 0)]
        if len(late):
            log_ratios[update.name] = float(np.median(np.log10(late)))
    slow = {name: log_ratio for name, log_ratio in log_ratios.items() if log_ratio < MIN_LOG_RATIO}
    fast = {name: log_ratio for name, log_ratio in log_ratios.items() if log_ratio > MAX_LOG_RATIO}
    findings = [
        Finding("warning", f"{_summarise(matrices)} per step: learning rate too {size}")
        for matrices, size in ((slow, "small"), (fast, "large"))
        if matrices
    ]
    if log_ratios and not findings:
        low, high = min(log_ratios.values()), max(log_ratios.values())
        smallest, largest = f"10^{low:.1f}", f"10^{high:.1f}"
        text = f"between {smallest} and {largest}" if smallest != largest else f"about {largest}"
        findings.append(Finding("good", f"updates are {text} of the weights"))
    return findings


def _summarise(ratios: dict[str, float]) -> str:
    largest = max(ratios, key=ratios.__getitem__)
    others = f" and {len(ratios) - 1} more matrices change by up to" if len(ratios) > 1 else " changes by"
    return f"{largest}{others} 10^{ratios[largest]:.1f}"
