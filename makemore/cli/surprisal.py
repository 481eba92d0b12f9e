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


def print_surprisal(result: Surprisal) -> None:
    """Print the text in colours, a legend, the totals and the largest surprisals."""
    bits = result.bits_P.tolist()
    levels = [level(piece_bits, piece) for piece_bits, piece in zip(bits, result.pieces, strict=True)]
    text = _coloured(result.pieces, [STYLES[n] for n in levels])
    text.append("bits/character: ")
    for minimum, style in zip(LEVELS, STYLES[1:], strict=True):
        text.append(f" {minimum:g} or more ", style)
    text.append(f"\n{result.score.split} by {result.label}: {totals(result.score)}")
    text.append(f"\nlargest surprisals: {_describe(result, result.ends_P.tolist(), bits, _top(bits))}")
    Console(soft_wrap=True, highlight=False).print(text)


def print_surprisal_diff(result: SurprisalDiff) -> None:
    """Print the text in the colours of the run with lower surprisal, and both runs' totals."""
    gains = zip(result.saved_bits_P.tolist(), result.pieces, strict=True)
    text = _coloured(result.pieces, [SIDES[better_class(*gain)] for gain in gains])
    text.append(f" {result.first.label} predicts better ", SIDES["a2"])
    text.append(" ")
    text.append(f" {result.second.label} predicts better ", SIDES["b2"])
    ends = result.ends_P.tolist()
    for surprisal, saved_bits_P in (
        (result.first, result.saved_bits_P),
        (result.second, -result.saved_bits_P),
    ):
        bits = saved_bits_P.tolist()
        indices = [i for i in _top(bits) if bits[i] > 0]
        text.append(f"\n{surprisal.label}: {totals(surprisal.score)}")
        text.append(f"\n  largest gains: {_describe(result.first, ends, bits, indices)}")
    Console(soft_wrap=True, highlight=False).print(text)


def _coloured(pieces: list[str], styles: list[str]) -> Text:
    """The text in colours, and an empty line."""
    text = Text()
    for piece, style in zip(pieces, styles, strict=True):
        text.append(visible(piece, bool(style)), style)
    return text.append("\n" if text.plain.endswith("\n") else "\n\n")


def _top(values: list[float]) -> list[int]:
    return sorted(range(len(values)), key=lambda i: -values[i])[:N_LARGEST]


def _describe(text: Surprisal, ends: list[int], bits: list[float], indices: list[int]) -> str:
    begins = [0, *ends]
    return "; ".join(f"{text.describe(begins[i], ends[i])} {bits[i]:.1f} bits" for i in indices) or "none"
