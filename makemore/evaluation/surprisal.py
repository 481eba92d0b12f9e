"""What each piece of a text cost a run, and where one run knows better than another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from makemore.corpus.decoding import read_text
from makemore.corpus.splits import encode_documents
from makemore.errors import UserError
from makemore.evaluation.evaluate import documents_in, known_lines
from makemore.evaluation.scoring import UNSPELLABLE_NATS, check_totals, summarise, token_nats
from makemore.types import Score, Split

if TYPE_CHECKING:
    from makemore.runs.run import Run


@dataclass(frozen=True)
class Surprisal:
    """A text cut into pieces: of each run's tokens as few as spell whole characters.

    A piece of one run ends at ``ends_P[i]``; its surprisal is that of all its tokens. Characters that the
    run can't spell are pieces of their own at a fixed price.
    """

    run: str
    text: str
    """What was scored: in ``lines`` mode without blank lines."""
    line_numbers: list[int]
    """Where each of its lines stands in the file."""
    ends_P: NDArray[np.int64]
    """Where pieces end, in characters."""
    nats_P: NDArray[np.float64]
    score: Score

    @property
    def bits_P(self) -> NDArray[np.float64]:
        return self.nats_P / math.log(2)

    @property
    def pieces(self) -> list[str]:
        return _cut(self.text, self.ends_P)

    def place(self, begin: int, end: int) -> str:
        """Characters ``begin`` to ``end``, and where in the file they stand, as editors count."""
        line = self.line_numbers[self.text.count("\n", 0, begin)]
        column = begin - self.text.rfind("\n", 0, begin)
        return f"{self.text[begin:end]!r} at {line}:{column}"

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        spans = [{"text": t, "bits": b} for t, b in zip(self.pieces, self.bits_P.tolist(), strict=True)]
        return {"run": self.run, **self.score.as_dict(), "spans": spans}


@dataclass(frozen=True)
class Duel:
    """Two runs on one text, cut where pieces of both end."""

    first: Surprisal
    second: Surprisal
    ends_P: NDArray[np.int64]
    first_bits_P: NDArray[np.float64]
    second_bits_P: NDArray[np.float64]

    @property
    def pieces(self) -> list[str]:
        return _cut(self.first.text, self.ends_P)

    @property
    def gain_P(self) -> NDArray[np.float64]:
        """Bits that the first run needs less; negative where the second knows better."""
        return self.second_bits_P - self.first_bits_P

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        columns = (self.pieces, self.first_bits_P.tolist(), self.second_bits_P.tolist())
        spans = [{"text": t, "bits": a, "bits_against": b} for t, a, b in zip(*columns, strict=True)]
        against = {"run": self.second.run, **self.second.score.as_dict()}
        return {"run": self.first.run, **self.first.score.as_dict(), "against": against, "spans": spans}


def _cut(text: str, ends_P: NDArray[np.int64]) -> list[str]:
    starts = [0, *ends_P[:-1].tolist()]
    return [text[a:b] for a, b in zip(starts, ends_P.tolist(), strict=True)]


def surprisal(run: Run, text: str | Path, stride: int | None = None) -> Surprisal:
    """What each piece of a text, or of a file, cost.

    Raises UserError for a file that can't be read, or a text that has nothing in it.
    """
    name = text.name if isinstance(text, Path) else "the text"
    whole = read_text(text, run.config["corpus"]["encoding"]) if isinstance(text, Path) else text
    documents = documents_in(run, whole)
    split = encode_documents(name, [documents], run.mode, run.tokenizer, known_lines(run))
    if not len(split.tokens_N):
        raise UserError(f"{name} has nothing in it that {run.name} can spell")
    end = "\n" if run.mode == "lines" else ""
    read = "".join(document + end for document in documents)
    check_totals(split, run.tokenizer)
    nats_N = token_nats(run.model, split, stride)
    ends_P, nats_P = _pieces(run, split, read, nats_N)
    score = summarise(split, nats_N, run.tokenizer.token_bytes())
    return Surprisal(run.name, read, _line_numbers(run, whole), ends_P, nats_P, score)


def _line_numbers(run: Run, text: str) -> list[int]:
    lines = text.split("\n")
    return [i for i, line in enumerate(lines, 1) if line.strip() or run.mode == "text"]


def duel(first: Surprisal, second: Surprisal) -> Duel:
    """Two runs beside each other. Raises UserError where they read the text differently."""
    if first.text != second.text:
        raise UserError(
            f"{first.run} reads the text as lines and {second.run} as one text, or the other way round; "
            "they can't stand side by side"
        )
    ends_P = np.intersect1d(first.ends_P, second.ends_P)
    return Duel(first, second, ends_P, _between(first, ends_P), _between(second, ends_P))


def _between(one: Surprisal, ends_P: NDArray[np.int64]) -> NDArray[np.float64]:
    last = np.searchsorted(one.ends_P, ends_P)
    return np.add.reduceat(one.bits_P, np.append(0, last[:-1] + 1))


def _pieces(
    run: Run, split: Split, text: str, nats_N: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ends, in characters, and nats of pieces (see ``Surprisal``)."""
    points = np.frombuffer(text.encode("utf-32-le"), "<u4")
    spelled = _spelled(run, text, points)
    sizes = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
    char_ends = np.cumsum(sizes[spelled])
    token_ends = np.cumsum(run.tokenizer.token_bytes()[split.tokens_N])
    whole = np.intersect1d(char_ends, token_ends)
    last_token = np.searchsorted(token_ends, whole)
    nats = np.add.reduceat(nats_N, np.append(0, last_token[:-1] + 1))
    place = np.flatnonzero(spelled)
    last_char = np.searchsorted(char_ends, whole)
    ends = place[last_char] + 1
    left_out = np.flatnonzero(~spelled)
    # One in the midst of a piece belongs to it; the others stand alone.
    begins = place[np.append(0, last_char[:-1] + 1)]
    inside = np.searchsorted(ends, left_out, side="right")
    alone = (inside == len(ends)) | (left_out < np.append(begins, len(points))[inside])
    all_ends = np.union1d(ends, left_out[alone] + 1)
    # What stands between two pieces of tokens was counted to none of them.
    nats_P = np.zeros(len(all_ends))
    nats_P[np.searchsorted(all_ends, ends)] = nats
    np.add.at(nats_P, np.searchsorted(all_ends, left_out, side="right"), UNSPELLABLE_NATS)
    return all_ends, nats_P


def _spelled(run: Run, text: str, points: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """(characters,) whether the run's tokens spell each."""
    unknown = run.tokenizer.unspellable(text)
    if run.mode == "lines":
        unknown.discard("\n")  # the boundary stands for it
    return ~np.isin(points, np.array([ord(c) for c in unknown], points.dtype))
