"""A text coloured by the surprisal of each piece."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from makemore.evaluation.surprisal import Surprisal, SurprisalDiff
from makemore.report.page import CONTROL_PICTURES, page, resource
from makemore.types import Score

LEVELS = (1.0, 2.0, 4.0, 8.0)
"""Colour thresholds in bits per character."""
GAINS = (0.5, 2.0)
"""Colour thresholds for the difference between two runs, in bits per character."""


def level(bits: float, piece: str) -> int:
    """Colour level from 0 (expected) to 4 (surprising), by bits per character."""
    return sum(bits / len(piece) >= threshold for threshold in LEVELS)


def better_class(gain: float, piece: str) -> str:
    """CSS class: ``a1``, ``a2`` if the first run is better, ``b1``, ``b2`` if the second is, else empty."""
    size = sum(abs(gain) / len(piece) >= threshold for threshold in GAINS)
    return f"{'a' if gain > 0 else 'b'}{size}" if size else ""


def visible(piece: str, marked: bool) -> str:
    """A piece as printed; line ends of ``marked`` (coloured) pieces are made visible."""
    return (piece.replace("\n", "↵\n") if marked else piece).translate(CONTROL_PICTURES)


def totals(score: Score) -> str:
    """Total bits of a text, and bits per character and byte."""
    outside = f", {score.unknown_chars:,} characters outside the alphabet" if score.unknown_chars else ""
    return (
        f"{score.nats / math.log(2):,.1f} bits for {score.chars:,} characters in {score.tokens:,} tokens: "
        f"{score.bits_per_char:.4f} bits/char, {score.bits_per_byte:.4f} bits/byte{outside}"
    )


def surprisal_page(result: Surprisal) -> str:
    """HTML page of a text, with the bits of each piece."""
    classes = []
    for piece, bits in zip(result.pieces, result.bits_P.tolist(), strict=True):
        n = level(bits, piece)
        classes.append((piece, f"s{n}" if n else "", f"{bits:.2f} bits"))
    bounds = [f"{bound:g}" for bound in LEVELS]
    names = [f"{a} to {b}" for a, b in zip(bounds, [*bounds[1:], ""], strict=True)]
    names[-1] = f"{bounds[-1]} or more"
    key = [(f"s{i}", f"{name} bits per character") for i, name in enumerate(names, 1)]
    head = f"<p>{escape(totals(result.score))}</p>"
    return _page(f"{result.score.split} by {result.label}", head, key, classes)


def surprisal_diff_page(result: SurprisalDiff) -> str:
    """HTML page of a text, with the bits of both runs for each piece."""
    classes = []
    bits = (bits_P.tolist() for bits_P in (result.first_bits_P, result.second_bits_P, result.saved_bits_P))
    for piece, first, second, gain in zip(result.pieces, *bits, strict=True):
        classes.append((piece, better_class(gain, piece), f"{first:.2f} bits vs {second:.2f}"))
    a, b = result.first.label, result.second.label
    key = [("a2", f"{a} is better"), ("a1", "slightly"), ("b2", f"{b} is better"), ("b1", "slightly")]
    head = "".join(
        f"<p><b>{escape(run.label)}</b>: {escape(totals(run.score))}</p>"
        for run in (result.first, result.second)
    )
    return _page(f"{result.first.score.split} by {a} vs {b}", head, key, classes)


def _page(
    title: str, head: str, key: Sequence[tuple[str, str]], pieces: Sequence[tuple[str, str, str]]
) -> str:
    marks = "".join(f'<span><i class="{name}"></i>{escape(meaning)}</span>' for name, meaning in key)
    spans = "".join(
        f'<span class="{name}" title="{tooltip}">{escape(visible(piece, bool(name)))}</span>'
        for piece, name, tooltip in pieces
    )
    body = (
        f'<h1>{escape(title)}</h1>{head}<div class="key">{marks}</div>'
        f'<div class="card"><div class="text">{spans}</div>'
        '<div class="bar soft" aria-live="polite">Hover over or tap a token to see its bits.</div></div>'
    )
    return page(title, body, resource("surprisal.js"))
