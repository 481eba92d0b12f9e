"""What a mixture is made of."""

from __future__ import annotations

from makemore.inspection.figures import BLUE, new_figure
from makemore.inspection.subject import Picture, Subject, Verdict
from makemore.models.mixture import Mixture

CAPTION = (
    "The weight of each member's probabilities in the sum, fitted on val. A small weight may still help "
    "where that member is sure and right."
)
LITTLE = 0.02


def draw(subject: Subject) -> Picture | None:
    """None for what isn't a mixture."""
    if not isinstance(subject.model, Mixture):
        return None
    names = [name for name, _ in subject.model.config.pairs()]
    weights = subject.model.weights.tolist()
    figure = new_figure(7, 0.5 * len(names) + 1.2)
    axes = figure.add_subplot()
    bars = axes.barh(range(len(names)), weights, color=BLUE)
    axes.bar_label(bars, [f"{weight:.3f}" for weight in weights], padding=3, fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, max(weights) * 1.15)
    axes.set_xlabel("weight")
    axes.set_ylabel("member")
    idle = [name for name, weight in zip(names, weights, strict=True) if weight < LITTLE]
    said = f"hardly any weight, and may be left out: {', '.join(idle)}" if idle else "every member counts"
    return Picture("members", "Members", CAPTION, figure, [Verdict("note" if idle else "good", said)])
