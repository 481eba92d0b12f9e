"""Does a run invent or recite? Samples against the training text, and held-out text for comparison."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from makemore.errors import UserError
from makemore.runs.training_lines import seen_lines
from makemore.sampling.text import SampleRequest, sample, shown_prompt

if TYPE_CHECKING:
    from makemore.corpus.documents import Documents
    from makemore.runs.run import Run

Ints = NDArray[np.int64]

NGRAMS = (1, 2, 3, 4)
LONGEST_RUN = 1 << 12
"""Copies are measured up to this many characters."""
MOST_TRAIN = 4_000_000
"""Characters of train that are searched for copies, some 100 bytes of memory and 2 µs each."""
REPORTED = {"lines": 1000, "text": 20}
"""Samples of a report."""


@dataclass(frozen=True)
class Originality:
    """What a set of texts shares with the training text, and with itself."""

    texts: int
    distinct: dict[int, float]
    """Different n-grams as a share of all (Li et al. 2016), by n: of characters in ``lines`` mode, of
    words in ``text`` mode. It falls with the amount of text: compare equal amounts."""
    repeated: float
    """Share of texts that were there before."""
    verbatim: float | None = None
    """Share of texts that are training lines (``lines`` mode)."""
    copied_mean: float | None = None
    """Characters of the longest run that stands in train too, averaged over texts (``text`` mode)."""
    copied_max: int | None = None


@dataclass(frozen=True)
class Memorisation:
    """A run's samples, and as much held-out text, if the source is at hand."""

    samples: Originality
    held_out: Originality | None
    searched: int | None = None
    """Characters of train, from its beginning, that were searched for copies (``text`` mode)."""

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def report(run: Run, requests: Sequence[SampleRequest]) -> Memorisation:
    """Sample a run and measure what comes out, in ``text`` mode what comes after the prompt.

    Raises UserError as ``sample`` and ``memorisation`` do.
    """
    texts: list[str] = []
    for request in requests:
        begin = 0 if run.mode == "lines" else len(shown_prompt(run, request))
        texts += (text[begin:] for text in sample(run, request))
    return memorisation(run, texts)


def memorisation(run: Run, samples: Sequence[str]) -> Memorisation:
    """Measure samples; held-out text is val, or test where there is no val.

    In ``text`` mode held-out text is cut into pieces of the samples' lengths. Raises UserError where
    the text is gone or changed and the run alone isn't enough.
    """
    if not samples:
        raise UserError("no samples to report on")
    if run.mode == "lines":
        return _of_lines(run, samples)
    documents = run.documents()
    train = documents.head("train", MOST_TRAIN)
    pieces = _pieces("".join(_held_out(documents)), samples)
    copied = longest_copies(train, [*samples, *pieces])
    mine, theirs = copied[: len(samples)], copied[len(samples) :]
    return Memorisation(
        _originality(samples, words=True, copied=mine),
        _originality(pieces, words=True, copied=theirs) if pieces else None,
        len(train),
    )


def _of_lines(run: Run, samples: Sequence[str]) -> Memorisation:
    seen = seen_lines(run)
    held_out: list[str] = []
    with contextlib.suppress(UserError):  # without its text the run still says what is in train
        held_out = _held_out(run.documents())[: len(samples)]
    texts = [list(samples), held_out]
    mine, theirs = (_originality(t, verbatim=[line in seen for line in t]) if t else None for t in texts)
    assert mine is not None
    return Memorisation(mine, theirs)


def _held_out(documents: Documents) -> list[str]:
    return documents.all("val") or documents.all("test")


def _pieces(text: str, like: Sequence[str]) -> list[str]:
    """Pieces of a text, evenly spread, as long as others; as many as there is room for."""
    sizes = [len(t) for t in like]
    while sizes and sum(sizes) > len(text):
        sizes.pop()
    gap = (len(text) - sum(sizes)) // max(len(sizes), 1)
    starts = np.cumsum([0, *(size + gap for size in sizes)])
    return [text[start : start + size] for start, size in zip(starts.tolist(), sizes, strict=False)]


def _originality(
    texts: Sequence[str],
    words: bool = False,
    verbatim: list[bool] | None = None,
    copied: Ints | None = None,
) -> Originality:
    units = [text.split() if words else list(text) for text in texts]
    return Originality(
        texts=len(texts),
        distinct={n: distinct_share(units, n) for n in NGRAMS},
        repeated=1 - len(set(texts)) / len(texts),
        verbatim=None if verbatim is None else sum(verbatim) / len(verbatim),
        copied_mean=None if copied is None else float(copied.mean()),
        copied_max=None if copied is None else int(copied.max()),
    )


def distinct_share(texts: Sequence[Sequence[str]], n: int) -> float:
    """Different n-grams as a share of all (distinct-n, Li et al. 2016); 1 where there are none."""
    grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def longest_copies(train: str, texts: Sequence[str]) -> Ints:
    """Characters of each text's longest run that stands in ``train`` too, (len(texts),).

    By the suffix array of all of it (Manber & Myers 1993): of training suffixes, those that share most
    with a given one are its neighbours.
    """
    joined = _codes([train, *texts])
    sizes = [len(train), *map(len, texts)]
    # Runs are measured up to the 0 that ends each text.
    ends = np.cumsum(np.array(sizes) + 1) - 1
    order = suffix_array(joined)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    in_train = order < len(train)
    index = np.arange(len(order))
    before = np.maximum.accumulate(np.where(in_train, index, -1))
    after = np.flip(np.minimum.accumulate(np.flip(np.where(in_train, index, len(order)))))
    longest = np.zeros(len(texts), np.int64)
    starts = ends[:-1] + 1
    for i, (start, end) in enumerate(zip(starts.tolist(), ends[1:].tolist(), strict=True)):
        suffixes = np.arange(start, end)
        for neighbour in (before, after):
            near = neighbour[place[suffixes]]
            there = (near >= 0) & (near < len(order))
            runs = _common(joined, suffixes[there], order[near[there]], end, len(train))
            longest[i] = max(longest[i], runs.max(initial=0))
    return longest


def _codes(texts: Sequence[str]) -> Ints:
    """Characters of all texts as ranks from 1, a 0 after each text."""
    points = [np.frombuffer(f"{t}\0".encode("utf-32-le", "surrogatepass"), dtype="<u4") for t in texts]
    _, codes = np.unique(np.concatenate(points), return_inverse=True)
    return codes.astype(np.int64)


def suffix_array(codes_N: Ints) -> Ints:
    """Starts of all suffixes in lexicographic order, to a depth of ``LONGEST_RUN``.

    By prefix doubling: ranks of twice the length from pairs of ranks. The first ones are of as many
    characters as fit a number.
    """
    bits = max(int(codes_N.max(initial=1)).bit_length(), 1)
    length = max(62 // bits, 1)
    key = np.zeros_like(codes_N)
    for i in range(length):
        key <<= bits
        key[: max(len(key) - i, 0)] |= codes_N[i:]
    while True:
        order = np.argsort(key, kind="stable")
        new = np.diff(key[order], prepend=-1) != 0
        if new.all() or length >= LONGEST_RUN:
            return order
        rank = np.empty_like(order)
        rank[order] = np.cumsum(new)
        key = rank * (len(rank) + 1)
        key[:-length] += rank[length:]
        length *= 2


def _common(codes_N: Ints, a_P: Ints, b_P: Ints, a_end: int, b_end: int) -> Ints:
    """Length of the common prefix of each pair of suffixes, which end at ``a_end`` and ``b_end``."""
    room_P = np.minimum(np.minimum(a_end - a_P, b_end - b_P), LONGEST_RUN)
    length_P = np.zeros_like(a_P)
    going = np.flatnonzero(room_P > 0)
    while len(going):
        at = length_P[going]
        going = going[codes_N[a_P[going] + at] == codes_N[b_P[going] + at]]
        length_P[going] += 1
        going = going[length_P[going] < room_P[going]]
    return length_P
