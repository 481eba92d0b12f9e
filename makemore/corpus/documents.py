"""A text as documents, and documents as train, val and test."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Literal

from makemore.config import CorpusConfig, split_shares
from makemore.errors import UserError

Mode = Literal["lines", "text"]
SPLITS = ("train", "val", "test")
SHUFFLE_SEED = 42


@dataclass(frozen=True)
class Documents:
    """The documents of each split, as text; line ends are not part of a line."""

    mode: Mode
    reason: str
    """Why this mode, in words."""
    shares: tuple[float, float, float]
    parts: dict[str, list[str]]
    blank_lines: int = 0
    """Lines left out because nothing stands on them (``lines`` mode)."""

    @property
    def text(self) -> str:
        """All documents of all splits joined, without line ends: what a tokenizer is fitted on."""
        return "".join(d for documents in self.parts.values() for d in documents)

    def digest(self, split: str) -> str:
        """sha256 of a split's documents in their order."""
        return hashlib.sha256("\n".join(self.parts[split]).encode()).hexdigest()


def choose_mode(text: str) -> tuple[Mode, str]:
    """``lines`` for a list of short independent lines, ``text`` for prose; and why."""
    lines = text.rstrip("\n").split("\n")
    blank = sum(not line.strip() for line in lines) / len(lines)
    indented = sum(line[:1] in (" ", "\t") for line in lines) / len(lines)
    lengths = sorted(len(line) for line in lines)
    median, long = lengths[len(lines) // 2], lengths[int(len(lines) * 0.95)]
    if len(lines) < 10:
        return "text", f"it has {len(lines)} line{'s' * (len(lines) != 1)}"
    if blank > 0.01:
        return "text", f"{blank:.0%} of its lines are blank"
    if indented > 0.1:
        return "text", f"{indented:.0%} of its lines are indented"
    if median > 40 or long > 200:
        return "text", f"its lines are long (median {median} characters)"
    return "lines", f"it is a list of {len(lines):,} short lines (median {median} characters)"


def _cut_lines(lines: list[str], shares: tuple[float, float, float]) -> list[list[str]]:
    random.Random(SHUFFLE_SEED).shuffle(lines)
    a, b = _bounds(len(lines), shares)
    return [lines[:a], lines[a:b], lines[b:]]


def _bounds(n: int, shares: tuple[float, float, float]) -> tuple[int, int]:
    # Rounded first: 0.9 + 0.05 is a little more than 0.95 in binary.
    return int(round(n * shares[0], 6)), int(round(n * (shares[0] + shares[1]), 6))


def make_documents(text: str, config: CorpusConfig) -> Documents:
    """Split a text, lines shuffled by a fixed seed, running text cut where the shares say.

    Raises UserError where there is nothing to learn, or a split would be empty although its share
    isn't 0.
    """
    if len(set(text.strip())) < 2:
        raise UserError("the text has a single kind of character; there is nothing to learn")
    mode, reason = (config.mode, "asked for") if config.mode != "auto" else choose_mode(text)
    shares = split_shares(config.split, mode)
    blank = 0
    if mode == "lines":
        lines = text.split("\n")
        kept = [line for line in lines if line.strip()]
        blank = len(lines) - len(kept) - (1 if text.endswith("\n") else 0)
        if len(kept) < 2:
            raise UserError("only one line to learn from; use --mode text, or give more lines")
        cut = _cut_lines(kept, shares)
    else:
        a, b = _bounds(len(text), shares)
        cut = [[piece] if piece else [] for piece in (text[:a], text[a:b], text[b:])]
    for name, share, documents in zip(SPLITS, shares, cut, strict=True):
        if share and not documents:
            unit = "lines" if mode == "lines" else "characters"
            raise UserError(
                f"too short: the {name} split would be empty; give more {unit}, "
                "or other shares, such as --split 0.5,0.25,0.25"
            )
    return Documents(mode, reason, shares, dict(zip(SPLITS, cut, strict=True)), blank)
