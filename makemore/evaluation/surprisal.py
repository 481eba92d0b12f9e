"""Surprisal of each piece of a text under a run, and the difference between two runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from makemore.corpus.decoding import normalize_newlines
from makemore.corpus.splits import encode_documents
from makemore.errors import UserError
from makemore.evaluation.evaluate import (
    adaptive_reader,
    require_known_text,
    split_documents,
    training_lines,
)
from makemore.evaluation.scoring import UNKNOWN_CHAR_NATS, check_totals, make_score, token_nats
from makemore.runs.run import Run
from makemore.types import Floats, Ints, Score, Split


@dataclass(frozen=True, kw_only=True)
class Surprisal:
    """A text split into the shortest pieces that consist of whole tokens and whole characters.

    Piece ``i`` ends at ``ends_P[i]``; its surprisal is the sum over its tokens. Characters the tokenizer
    can't encode are separate pieces with a fixed surprisal.
    """

    run: str
    text: str
    """The scored text; in ``lines`` mode without blank lines."""
    line_numbers: list[int]
    """Line number in the file of each line of ``text``."""
    ends_P: Ints
    """End of each piece, in characters."""
    nats_P: Floats
    score: Score
    adaptive: bool = False
    """Whether the model learned from the text while it was scored."""

    @property
    def label(self) -> str:
        """The run's name, for display."""
        return f"{self.run}, adaptive" if self.adaptive else self.run

    @property
    def bits_P(self) -> Floats:
        return self.nats_P / math.log(2)

    @property
    def pieces(self) -> list[str]:
        return _split_at(self.text, self.ends_P)

    def describe(self, begin: int, end: int) -> str:
        """Describe characters ``begin`` to ``end`` with their line and column in the file."""
        line = self.line_numbers[self.text.count("\n", 0, begin)]
        column = begin - self.text.rfind("\n", 0, begin)
        return f"{self.text[begin:end]!r} at {line}:{column}"

    def as_dict(self) -> dict[str, Any]:
        """Metrics for ``--json``."""
        spans = [{"text": t, "bits": b} for t, b in zip(self.pieces, self.bits_P.tolist(), strict=True)]
        return {"run": self.run, "adaptive": self.adaptive, **self.score.as_dict(), "spans": spans}


@dataclass(frozen=True, kw_only=True)
class SurprisalDiff:
    """Surprisal of two runs on one text, split where pieces of both end."""

    first: Surprisal
    second: Surprisal
    ends_P: Ints
    first_bits_P: Floats
    second_bits_P: Floats

    @property
    def pieces(self) -> list[str]:
        return _split_at(self.first.text, self.ends_P)

    @property
    def saved_bits_P(self) -> Floats:
        """Bits saved by the first run; negative where the second run is better."""
        return self.second_bits_P - self.first_bits_P

    def as_dict(self) -> dict[str, Any]:
        """Metrics for ``--json``."""
        columns = (self.pieces, self.first_bits_P.tolist(), self.second_bits_P.tolist())
        spans = [{"text": t, "bits": a, "bits_against": b} for t, a, b in zip(*columns, strict=True)]
        against = {"run": self.second.run, **self.second.score.as_dict()}
        first = {"run": self.first.run, "adaptive": self.first.adaptive, **self.first.score.as_dict()}
        return {**first, "against": against, "spans": spans}


def _split_at(text: str, ends_P: Ints) -> list[str]:
    starts = [0, *ends_P[:-1].tolist()]
    return [text[a:b] for a, b in zip(starts, ends_P.tolist(), strict=True)]


def surprisal(run: Run, text: str | Path, stride: int | None = None, *, adaptive: bool = False) -> Surprisal:
    """Score each piece of a text, or of a file if it is a Path; ``adaptive``: the model learns from it.

    Raises UserError for an unreadable file, a text without encodable characters, or a model that can't learn.
    """
    name = text.name if isinstance(text, Path) else "the text"
    full_text = run.text(text).string() if isinstance(text, Path) else normalize_newlines(text)
    documents = split_documents(run, full_text)
    split = encode_documents(
        name, [documents], mode=run.mode, tokenizer=run.tokenizer, seen=training_lines(run)
    )
    require_known_text(run, split)
    end = "\n" if run.mode == "lines" else ""
    scored_text = "".join(document + end for document in documents)
    check_totals(split, run.tokenizer)
    if adaptive:
        nats_N = adaptive_reader(run, stride=stride).read(split).nats_N
    else:
        nats_N = token_nats(run.model, split, stride)
    ends_P, nats_P = _pieces(run, split, scored_text, nats_N)
    score = make_score(split, nats_N, run.tokenizer.token_bytes())
    lines = enumerate(full_text.split("\n"), 1)
    return Surprisal(
        run=run.name,
        text=scored_text,
        line_numbers=[i for i, line in lines if line.strip() or run.mode == "text"],
        ends_P=ends_P,
        nats_P=nats_P,
        score=score,
        adaptive=adaptive,
    )


def surprisal_diff(first: Surprisal, second: Surprisal) -> SurprisalDiff:
    """Compare two runs. Raises UserError if they split the text into different documents."""
    if first.text != second.text:
        raise UserError(
            f"{first.run} and {second.run} read the text differently, one as lines and one as running text; "
            "compare runs of the same mode"
        )
    ends_P = np.intersect1d(first.ends_P, second.ends_P)
    return SurprisalDiff(
        first=first,
        second=second,
        ends_P=ends_P,
        first_bits_P=_sum_between(first, ends_P),
        second_bits_P=_sum_between(second, ends_P),
    )


def _sum_between(one: Surprisal, ends_P: Ints) -> Floats:
    last = np.searchsorted(one.ends_P, ends_P)
    return np.add.reduceat(one.bits_P, np.append(0, last[:-1] + 1))


def _pieces(run: Run, split: Split, text: str, nats_N: Floats) -> tuple[Ints, Floats]:
    """Ends (in characters) and nats of the pieces."""
    points = np.frombuffer(text.encode("utf-32-le"), "<u4")
    encodable = _encodable_mask(run, text, points)
    sizes = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
    char_ends = np.cumsum(sizes[encodable])
    token_ends = np.cumsum(run.tokenizer.token_bytes()[split.tokens_N])
    shared_ends = np.intersect1d(char_ends, token_ends)
    last_token = np.searchsorted(token_ends, shared_ends)
    nats = np.add.reduceat(nats_N, np.append(0, last_token[:-1] + 1))
    positions = np.flatnonzero(encodable)
    last_char = np.searchsorted(char_ends, shared_ends)
    ends = positions[last_char] + 1
    unencodable = np.flatnonzero(~encodable)
    # An unencodable character inside a piece joins it; others become pieces of their own.
    begins = positions[np.append(0, last_char[:-1] + 1)]
    inside = np.searchsorted(ends, unencodable, side="right")
    separate = (inside == len(ends)) | (unencodable < np.append(begins, len(points))[inside])
    all_ends = np.union1d(ends, unencodable[separate] + 1)
    # ``nats`` has no entry for the pieces without tokens.
    nats_P = np.zeros(len(all_ends))
    nats_P[np.searchsorted(all_ends, ends)] = nats
    np.add.at(nats_P, np.searchsorted(all_ends, unencodable, side="right"), UNKNOWN_CHAR_NATS)
    return all_ends, nats_P


def _encodable_mask(run: Run, text: str, points: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Whether the tokenizer can encode each character, (len(text),)."""
    unknown = run.tokenizer.unknown_chars(text)
    if run.mode == "lines":
        unknown.discard("\n")  # encoded as the boundary token
    return ~np.isin(points, np.array([ord(c) for c in unknown], points.dtype))
