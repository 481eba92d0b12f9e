"""Memorisation statistics: how much of a run's samples is copied from train, against held-out text."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from makemore.corpus.documents import Documents
from makemore.errors import UserError
from makemore.runs.run import Run
from makemore.runs.training_lines import TrainLines, train_lines
from makemore.sampling.text import SampleRequest, normalize_prompt, sample
from makemore.types import Ints

NGRAMS = (1, 2, 3, 4)
MAX_COPY_LENGTH = 1 << 12
"""Copied runs of characters are measured up to this length."""
MAX_TRAIN_CHARS = 4_000_000
"""Characters of train searched for copies; each costs about 100 bytes of memory and 2 µs."""
DEFAULT_SAMPLES = {"lines": 1000, "text": 20}
"""Default number of samples in a report, by mode."""


@dataclass(frozen=True)
class Originality:
    """Overlap of a set of texts with the training text and with itself."""

    texts: int
    distinct: dict[int, float]
    """distinct-n by n (see ``distinct_share``), over characters in ``lines`` mode and words in ``text`` mode.
    It falls with the amount of text: compare equal amounts."""
    repeated: float
    """Share of texts that duplicate an earlier one."""
    verbatim: float | None = None
    """Share of texts that are training lines (``lines`` mode)."""
    copied_mean: float | None = None
    """Characters of the longest substring shared with train, averaged over texts (``text`` mode)."""
    copied_max: int | None = None


@dataclass(frozen=True)
class MemorizationReport:
    """Statistics of a run's samples, and of as much held-out text if the source is available."""

    samples: Originality
    held_out: Originality | None
    searched: int | None = None
    """Number of characters at the beginning of train that were searched for copies (``text`` mode)."""


def sample_memorization(run: Run, requests: Sequence[SampleRequest]) -> MemorizationReport:
    """Sample a run and measure the samples; in ``text`` mode, without their prompt."""
    texts: list[str] = []
    for request in requests:
        start = 0 if run.mode == "lines" else len(normalize_prompt(run, request))
        texts += (text[start:] for text in sample(run, request))
    return memorisation(run, texts)


def memorisation(run: Run, samples: Sequence[str]) -> MemorizationReport:
    """Measure samples and held-out text: val, or test if val is empty.

    In ``text`` mode the held-out text is cut into pieces of the samples' lengths. Raises UserError if the
    training text is needed but missing or changed.
    """
    if not samples:
        raise UserError("no samples to report on; request at least one")
    if run.mode == "lines":
        return _line_memorisation(run, samples)
    documents = run.documents()
    train = documents.head("train", MAX_TRAIN_CHARS)
    pieces = _cut_pieces("".join(_held_out_texts(documents)), samples)
    copied = longest_copies(train, [*samples, *pieces])
    sample_copies, held_out_copies = copied[: len(samples)], copied[len(samples) :]
    return MemorizationReport(
        _measure(samples, words=True, copied=sample_copies),
        _measure(pieces, words=True, copied=held_out_copies) if pieces else None,
        len(train),
    )


def _line_memorisation(run: Run, samples: Sequence[str]) -> MemorizationReport:
    seen = train_lines(run)
    held_out: list[str] = []
    with contextlib.suppress(UserError):  # the stored line hashes suffice to compare with train
        held_out = _held_out_texts(run.documents())[: len(samples)]
    baseline = _measure(held_out, seen=seen) if held_out else None
    return MemorizationReport(_measure(samples, seen=seen), baseline)


def _held_out_texts(documents: Documents) -> list[str]:
    return documents.all("val") or documents.all("test")


def _cut_pieces(text: str, like: Sequence[str]) -> list[str]:
    """Cut evenly spaced pieces with the lengths of ``like``, as many as fit."""
    sizes = [len(t) for t in like]
    while sizes and sum(sizes) > len(text):
        sizes.pop()
    gap = (len(text) - sum(sizes)) // max(len(sizes), 1)
    starts = np.cumsum([0, *(size + gap for size in sizes)])
    return [text[start : start + size] for start, size in zip(starts.tolist(), sizes, strict=False)]


def _measure(
    texts: Sequence[str], words: bool = False, seen: TrainLines | None = None, copied: Ints | None = None
) -> Originality:
    units = [text.split() if words else list(text) for text in texts]
    return Originality(
        texts=len(texts),
        distinct={n: distinct_share(units, n) for n in NGRAMS},
        repeated=1 - len(set(texts)) / len(texts),
        verbatim=None if seen is None else sum(text in seen for text in texts) / len(texts),
        copied_mean=None if copied is None else float(copied.mean()),
        copied_max=None if copied is None else int(copied.max()),
    )


def distinct_share(texts: Sequence[Sequence[str]], n: int) -> float:
    """Distinct n-grams as a share of all n-grams (distinct-n, Li et al. 2016); 1 if there are none."""
    grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def longest_copies(train: str, texts: Sequence[str]) -> Ints:
    """Length in characters of each text's longest substring that also occurs in ``train``, (len(texts),).

    Uses a joint suffix array (Manber & Myers 1993): the training suffixes with the longest common prefix are
    a suffix's nearest neighbours in it.
    """
    joined = _encode([train, *texts])
    sizes = [len(train), *map(len, texts)]
    # Matches stop at the 0 that terminates each text.
    ends = np.cumsum(np.array(sizes) + 1) - 1
    order = suffix_array(joined)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    in_train = order < len(train)
    index = np.arange(len(order))
    before = np.maximum.accumulate(np.where(in_train, index, -1))
    after = np.flip(np.minimum.accumulate(np.flip(np.where(in_train, index, len(order)))))
    longest = np.zeros(len(texts), np.int64)
    starts = ends[:-1] + 1
    for i, (start, end) in enumerate(zip(starts.tolist(), ends[1:].tolist(), strict=True)):
        suffixes = np.arange(start, end)
        for neighbour in (before, after):
            closest = neighbour[rank[suffixes]]
            valid = (closest >= 0) & (closest < len(order))
            lengths = _common_prefix_lengths(joined, suffixes[valid], order[closest[valid]], end, len(train))
            longest[i] = max(longest[i], lengths.max(initial=0))
    return longest


def _encode(texts: Sequence[str]) -> Ints:
    """Encode characters as ranks from 1, with a 0 after each text."""
    points = [np.frombuffer(f"{t}\0".encode("utf-32-le", "surrogatepass"), dtype="<u4") for t in texts]
    _, codes = np.unique(np.concatenate(points), return_inverse=True)
    return codes.astype(np.int64)


def suffix_array(codes_N: Ints) -> Ints:
    """Starts of all suffixes in lexicographic order, compared up to ``MAX_COPY_LENGTH`` characters.

    Prefix doubling: pairs of ranks give ranks of twice the length, beginning with as many characters as fit
    into an int64.
    """
    bits = max(int(codes_N.max(initial=1)).bit_length(), 1)
    length = max(62 // bits, 1)
    key = np.zeros_like(codes_N)
    for i in range(length):
        key <<= bits
        key[: max(len(key) - i, 0)] |= codes_N[i:]
    while True:
        order = np.argsort(key, kind="stable")
        is_new = np.diff(key[order], prepend=-1) != 0
        if is_new.all() or length >= MAX_COPY_LENGTH:
            return order
        rank = np.empty_like(order)
        rank[order] = np.cumsum(is_new)
        key = rank * (len(rank) + 1)
        key[:-length] += rank[length:]
        length *= 2


def _common_prefix_lengths(codes_N: Ints, a_P: Ints, b_P: Ints, a_end: int, b_end: int) -> Ints:
    """Common prefix length of each pair of suffixes; ``a_end`` and ``b_end`` end their texts."""
    max_P = np.minimum(np.minimum(a_end - a_P, b_end - b_P), MAX_COPY_LENGTH)
    length_P = np.zeros_like(a_P)
    active = np.flatnonzero(max_P > 0)
    while len(active):
        offset = length_P[active]
        active = active[codes_N[a_P[active] + offset] == codes_N[b_P[active] + offset]]
        length_P[active] += 1
        active = active[length_P[active] < max_P[active]]
    return length_P
