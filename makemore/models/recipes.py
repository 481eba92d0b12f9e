"""Rules that the recipes of several models share."""

from __future__ import annotations

import math

MAX_DROPOUT = 0.6


def dropout_for(epochs: float, onset: float, slope: float) -> float:
    """Dropout probability that grows with the logarithm of the number of epochs.

    Twice the time, or a machine half as fast as estimated, changes it little.

    Args:
        epochs: estimated number of passes over the text within the budget.
        onset: maximum number of epochs without dropout.
        slope: increase of the dropout for each factor of e (2.72) in the number of epochs.
    """
    if epochs <= onset:
        return 0.0
    return round(min(slope * math.log(epochs / onset), MAX_DROPOUT), 2)
