"""Weights of a mixture's members."""

from __future__ import annotations

from makemore.inspection.figures import BLUE, new_figure
from makemore.inspection.subject import Finding, Picture, Subject
from makemore.models.mixture import Mixture

CAPTION = (
    "Weight of each member's probabilities in the mixture, fitted on val; with a gate, its average share. A "
    "member with a small weight may still help where it is confident and correct."
)
MIN_WEIGHT = 0.02


def plot(subject: Subject) -> Picture | None:
    """Plot the weights. Returns None unless the model is a mixture."""
    if not isinstance(subject.model, Mixture):
        return None
    names = [member.name for member in subject.model.config.members]
    weights = subject.model.weights.tolist()
    figure = new_figure(7, 0.5 * len(names) + 1.2)
    axes = figure.add_subplot()
    bars = axes.barh(range(len(names)), weights, color=BLUE)
    axes.bar_label(bars, [f"{weight:.3f}" for weight in weights], padding=3, fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlim=(0, max(weights) * 1.15), xlabel="weight", ylabel="member")
    idle = [name for name, weight in zip(names, weights, strict=True) if weight < MIN_WEIGHT]
    text = f"almost no weight, can be left out: {', '.join(idle)}" if idle else "every member contributes"
    findings = [Finding("note" if idle else "good", text)]
    return Picture("members", "Members", CAPTION, figure, findings)
