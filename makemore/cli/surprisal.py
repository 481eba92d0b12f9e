"""Surprisal in a terminal's colours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from makemore.report.surprisal import LEVELS, level, shown, side, totals

if TYPE_CHECKING:
    from makemore.evaluation.surprisal import Duel, Surprisal

# Dark letters on light grounds, which can be read whatever the terminal's own colours are.
STYLES = ("", "black on #fff0c2", "black on #ffd590", "black on #ffa86b", "black on #f5714f")
SIDES = {
    "": "",
    "a1": "black on #d3ecdf",
    "a2": "black on #6fc596",
    "b1": "black on #fde3cf",
    "b2": "black on #f49a5c",
}
WORST = 5


def _print(text: Text) -> None:
    Console(soft_wrap=True, highlight=False).print(text)


def print_surprisal(found: Surprisal) -> None:
    """The text in colours, what they mean, the totals and the greatest surprises."""
    text = Text()
    for piece, bits in zip(found.pieces, found.bits_P.tolist(), strict=True):
        n = level(bits, piece)
        text.append(shown(piece, n > 0), STYLES[n])
    _end_line(text)
    text.append("\nbits a character: ")
    for least, style in zip(LEVELS, STYLES[1:], strict=True):
        text.append(f" {least:g} or more ", style)
    text.append(f"\n{found.score.split} by {found.run}: {totals(found.score)}")
    bits = found.bits_P.tolist()
    text.append(f"\ngreatest surprises: {_said(found, found.ends_P.tolist(), bits, _greatest(bits))}")
    _print(text)


def print_duel(found: Duel) -> None:
    """The text in the colours of the run that knows better, and both runs' totals."""
    text = Text()
    for piece, gain in zip(found.pieces, found.gain_P.tolist(), strict=True):
        name = side(gain, piece)
        text.append(shown(piece, bool(name)), SIDES[name])
    _end_line(text)
    text.append("\n")
    text.append(f" {found.first.run} knows better ", SIDES["a2"])
    text.append(" ")
    text.append(f" {found.second.run} knows better ", SIDES["b2"])
    ends = found.ends_P.tolist()
    for one, gain_P in ((found.first, found.gain_P), (found.second, -found.gain_P)):
        bits = gain_P.tolist()
        places = [i for i in _greatest(bits) if bits[i] > 0]
        text.append(f"\n{one.run}: {totals(one.score)}")
        text.append(f"\n  better by most: {_said(found.first, ends, bits, places)}")
    _print(text)


def _end_line(text: Text) -> None:
    if not text.plain.endswith("\n"):
        text.append("\n")


def _greatest(values: list[float]) -> list[int]:
    return sorted(range(len(values)), key=lambda i: -values[i])[:WORST]


def _said(text: Surprisal, ends: list[int], bits: list[float], places: list[int]) -> str:
    """Pieces, where they stand, and their bits."""
    begins = [0, *ends]
    return "; ".join(f"{text.place(begins[i], ends[i])} {bits[i]:.1f} bits" for i in places) or "nowhere"
