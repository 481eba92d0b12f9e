"""Numbers as text."""

from __future__ import annotations

import math


def number(value: float | None, digits: int = 4) -> str:
    """A number with ``digits`` decimals; a dash if it is missing or not finite."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def interval(bounds: tuple[float, float], digits: int = 4, sign: str = "") -> str:
    """Two bounds; "too short" if the text is too short for an interval, a dash if the loss is infinite."""
    low, high = bounds
    if not math.isfinite(high):
        return "–" if low == math.inf else "too short"
    return f"{low:{sign}.{digits}f} to {high:{sign}.{digits}f}"


def with_unit(value: float | None) -> str:
    """Three significant digits and a unit: 1234567 is 1.23M."""
    if value is None:
        return "–"
    value = float(f"{value:.3g}")  # round first: 999,999 is 1M
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def memory(value: int | None) -> str:
    """Bytes as MiB."""
    return "–" if value is None else f"{value / 2**20:,.0f} MiB"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
