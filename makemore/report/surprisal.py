"""A text coloured by what each piece of it cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from makemore.evaluation.surprisal import Duel, Surprisal
from makemore.report.page import page
from makemore.types import Score

LEVELS = (1.0, 2.0, 4.0, 8.0)
"""Bits a character at which a colour begins."""
GAINS = (0.5, 2.0)
"""Bits a character by which one run is better, at which a colour begins."""
PICTURES = (
    {i: chr(0x2400 + i) for i in range(32) if chr(i) not in "\n\t"}
    | {0x7F: "␡"}
    | {i: f"\\x{i:x}" for i in range(0x80, 0xA0)}
)
"""Control characters as pictures of them, or spelled out, so that none reaches a terminal."""


def level(bits: float, piece: str) -> int:
    """0 (expected) to 4 (a surprise): bits of each of the piece's characters."""
    return sum(bits / len(piece) >= least for least in LEVELS)


def side(gain: float, piece: str) -> str:
    """``a1``, ``a2``: the first run knows better; ``b1``, ``b2``: the second; nothing: they are near."""
    size = sum(abs(gain) / len(piece) >= least for least in GAINS)
    return f"{'a' if gain > 0 else 'b'}{size}" if size else ""


def shown(piece: str, marked: bool) -> str:
    """A piece as it is printed: line ends have a sign where they are coloured."""
    return (piece.replace("\n", "↵\n") if marked else piece).translate(PICTURES)


def totals(score: Score) -> str:
    """What a text cost in all."""
    outside = f", {score.unspellable:,} characters outside the alphabet" if score.unspellable else ""
    return (
        f"{score.nats / math.log(2):,.1f} bits for {score.chars:,} characters in {score.tokens:,} tokens: "
        f"{score.bits_per_char:.4f} bits/char, {score.bits_per_byte:.4f} bits/byte{outside}"
    )


def surprisal_page(found: Surprisal) -> str:
    """The text, each piece with its bits."""
    classes = []
    for piece, bits in zip(found.pieces, found.bits_P.tolist(), strict=True):
        n = level(bits, piece)
        classes.append((piece, f"s{n}" if n else "", f"{bits:.2f} bits"))
    bounds = [f"{least:g}" for least in LEVELS]
    names = [f"{a} to {b}" for a, b in zip(bounds, [*bounds[1:], ""], strict=True)]
    names[-1] = f"{bounds[-1]} or more"
    key = [(f"s{i}", f"{name} bits a character") for i, name in enumerate(names, 1)]
    head = f"<p>{escape(totals(found.score))}</p>"
    return _page(f"{found.score.split} by {found.run}", head, key, classes)


def duel_page(found: Duel) -> str:
    """The text, each piece with the bits of both runs."""
    classes = []
    columns = (found.pieces, found.first_bits_P.tolist(), found.second_bits_P.tolist(), found.gain_P.tolist())
    for piece, first, second, gain in zip(*columns, strict=True):
        classes.append((piece, side(gain, piece), f"{first:.2f} bits, against {second:.2f}"))
    a, b = found.first.run, found.second.run
    key = [("a2", f"{a} knows better"), ("a1", "a little"), ("b2", f"{b} knows better"), ("b1", "a little")]
    head = "".join(
        f"<p><b>{escape(one.run)}</b>: {escape(totals(one.score))}</p>" for one in (found.first, found.second)
    )
    return _page(f"{found.first.score.split} by {a}, against {b}", head, key, classes)


def _page(
    title: str, head: str, key: Sequence[tuple[str, str]], pieces: Sequence[tuple[str, str, str]]
) -> str:
    marks = "".join(f'<span><i class="{name}"></i>{escape(meaning)}</span>' for name, meaning in key)
    spans = "".join(
        f'<span class="{name}" title="{told}">{escape(shown(piece, bool(name)))}</span>'
        for piece, name, told in pieces
    )
    body = (
        f'<h1>{escape(title)}</h1>{head}<div class="key">{marks}</div>'
        f'<div class="card"><div class="text">{spans}</div>'
        '<div class="bar soft" aria-live="polite">Point at, or touch, a piece for its bits.</div></div>'
    )
    return page(title, body, "surprisal.js")
