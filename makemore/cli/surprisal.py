"""Print surprisal in terminal colours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from makemore.cli.console import Console
from makemore.report.surprisal import LEVELS, better_class, level, totals, visible

if TYPE_CHECKING:
    from makemore.evaluation.surprisal import Surprisal, SurprisalDiff

# Dark text on a light background is readable in any terminal theme.
STYLES = ("", "black on #fff0c2", "black on #ffd590", "black on #ffa86b", "black on #f5714f")
SIDES = {
    "": "",
    "a1": "black on #d3ecdf",
    "a2": "black on #6fc596",
    "b1": "black on #fde3cf",
    "b2": "black on #f49a5c",
}
N_LARGEST = 5


def _print(text: Text) -> None:
    Console(soft_wrap=True, highlight=False).print(text)


def print_surprisal(result: Surprisal) -> None:
    """Print the text in colours, a legend, the totals and the largest surprisals."""
    text = Text()
    for piece, bits in zip(result.pieces, result.bits_P.tolist(), strict=True):
        n = level(bits, piece)
        text.append(visible(piece, n > 0), STYLES[n])
    _end_line(text)
    text.append("\nbits/character: ")
    for minimum, style in zip(LEVELS, STYLES[1:], strict=True):
        text.append(f" {minimum:g} or more ", style)
    text.append(f"\n{result.score.split} by {result.run}: {totals(result.score)}")
    bits = result.bits_P.tolist()
    text.append(f"\nlargest surprisals: {_describe(result, result.ends_P.tolist(), bits, _top(bits))}")
    _print(text)


def print_surprisal_diff(result: SurprisalDiff) -> None:
    """Print the text in the colours of the run with lower surprisal, and both runs' totals."""
    text = Text()
    for piece, gain in zip(result.pieces, result.saved_bits_P.tolist(), strict=True):
        name = better_class(gain, piece)
        text.append(visible(piece, bool(name)), SIDES[name])
    _end_line(text)
    text.append("\n")
    text.append(f" {result.first.run} predicts better ", SIDES["a2"])
    text.append(" ")
    text.append(f" {result.second.run} predicts better ", SIDES["b2"])
    ends = result.ends_P.tolist()
    for surprisal, saved_bits_P in (
        (result.first, result.saved_bits_P),
        (result.second, -result.saved_bits_P),
    ):
        bits = saved_bits_P.tolist()
        indices = [i for i in _top(bits) if bits[i] > 0]
        text.append(f"\n{surprisal.run}: {totals(surprisal.score)}")
        text.append(f"\n  largest gains: {_describe(result.first, ends, bits, indices)}")
    _print(text)


def _end_line(text: Text) -> None:
    if not text.plain.endswith("\n"):
        text.append("\n")


def _top(values: list[float]) -> list[int]:
    return sorted(range(len(values)), key=lambda i: -values[i])[:N_LARGEST]


def _describe(text: Surprisal, ends: list[int], bits: list[float], indices: list[int]) -> str:
    begins = [0, *ends]
    return "; ".join(f"{text.describe(begins[i], ends[i])} {bits[i]:.1f} bits" for i in indices) or "none"
