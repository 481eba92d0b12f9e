"""Dropout by the number of passes over the text: what is seen often is soon memorised."""

from __future__ import annotations

import math

MAX_DROPOUT = 0.6
"""However often the text is seen."""


def dropout_for(epochs: float, onset: float, slope: float) -> float:
    """Dropout that grows with the logarithm of the number of passes, so that twice the time, or a machine
    half as fast as estimated, changes it little.

    Args:
        epochs: estimate of the number of passes over the text within the budget.
        onset: number of passes up to which there is no dropout.
        slope: how much is added each time the passes grow by a factor of e (2.72).
    """
    if epochs <= onset:
        return 0.0
    return round(min(slope * math.log(epochs / onset), MAX_DROPOUT), 2)
