"""Rules that choose a model's size and regularisation from text, budget and training speed.

Their constants were fitted to the measurements in ``docs/defaults.md``.
"""

from __future__ import annotations

import math

MAX_DROPOUT = 0.6
DECAY_EPOCHS, MAX_DECAY_GROWTH = 50, 3
"""Number of epochs of running text above which weight decay grows in proportion, up to this factor."""


def dropout_for(epochs: float, onset: float, slope: float) -> float:
    """Dropout probability that grows with the logarithm of the number of epochs.

    Args:
        epochs: estimated number of passes over the text within the budget.
        onset: maximum number of epochs without dropout.
        slope: increase of the dropout for each factor of e (2.72) in the number of epochs.
    """
    if epochs <= onset:
        return 0.0
    return round(min(slope * math.log(epochs / onset), MAX_DROPOUT), 2)


def weight_decay_for(epochs: float, base: float = 0.1) -> float:
    """Weight decay: ``base`` up to DECAY_EPOCHS epochs, then in proportion to them."""
    return round(base * min(max(epochs / DECAY_EPOCHS, 1), MAX_DECAY_GROWTH), 2)


def describe_recipe(n_layer: int, width: int, dropout: float, epochs: float) -> str:
    """One line with the chosen size and dropout and the number of epochs; empty for an unlimited budget."""
    if math.isinf(epochs):
        return ""
    size = f"{n_layer} layer{'s' * (n_layer != 1)} of width {width} and dropout {dropout:g}"
    times = f"the text about {epochs:,.0f} times" if epochs >= 1.5 else "the text about once"
    return f"{size}, for a budget that covers {times if epochs >= 0.75 else f'{epochs:.0%} of the text'}"
