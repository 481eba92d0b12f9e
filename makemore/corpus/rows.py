"""Rows of a batch: ranges of a document, with the targets that count towards the loss."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from makemore.types import IGNORE_INDEX, Batch, Split

MAX_EXACT_PIECES = 32
"""Number of pieces of a segment below which an extra piece is avoided."""


class Rows(NamedTuple):
    """Ranges ``begin … end`` of target indices, (R,) int64; targets before ``score_from`` don't count."""

    begin: np.ndarray
    score_from: np.ndarray
    end: np.ndarray

    def select(self, index: np.ndarray | slice) -> Rows:
        return Rows(self.begin[index], self.score_from[index], self.end[index])

    @property
    def lengths(self) -> np.ndarray:
        return self.end - self.begin


class Segments(NamedTuple):
    """Segments of documents that rows are cut from, (S,) int64 each."""

    begin: np.ndarray
    end: np.ndarray
    floor: np.ndarray
    """Start of the document, the lower bound for rows."""


def eval_windows(split: Split, length: int, overlap: int) -> Rows:
    """Rows of at most ``length`` that count every target exactly once.

    A row within a document starts with ``overlap`` uncounted tokens of context.
    """
    sizes = split.ends_D - split.starts_D
    stride = length - overlap
    rows_D = np.maximum(1, -(-(sizes - overlap) // stride))
    first = np.repeat(split.starts_D, rows_D)
    nth = np.arange(len(first)) - np.repeat(np.cumsum(rows_D) - rows_D, rows_D)
    begin = first + nth * stride
    end = np.minimum(begin + length, np.repeat(split.ends_D, rows_D))
    return Rows(begin, np.where(nth > 0, begin + overlap, begin), end)


def shuffled_windows(segments: Segments, length: int, context_prefix: int, rng: np.random.Generator) -> Rows:
    """Rows of an epoch: whole segments; long segments in pieces of ``length``, cut at a random phase.

    Every target counts once, or possibly twice near the ends of a long segment. A piece within a
    document starts with up to ``context_prefix`` uncounted tokens of context.
    """
    begin, stop, floor = segments
    sizes = stop - begin
    phase_S = np.where(sizes > length, rng.integers(0, length, len(sizes)), 0)
    pieces_S = -(-sizes // length)
    few_S = (pieces_S > 1) & (pieces_S < MAX_EXACT_PIECES)
    if few_S.any():  # an extra, overlapping piece would repeat a large part of such a segment
        slack_S = pieces_S * length - sizes
        phase_S[few_S] = rng.integers(0, slack_S[few_S] + 1)
    rows_S = -(-(sizes + phase_S) // length)
    first = np.repeat(begin, rows_S)
    nth = np.arange(len(first)) - np.repeat(np.cumsum(rows_S) - rows_S, rows_S)
    # Shift pieces at a segment's ends inwards to keep every piece at full length.
    max_offset = np.repeat(np.maximum(sizes - length, 0), rows_S)
    score_from = first + np.clip(nth * length - np.repeat(phase_S, rows_S), 0, max_offset)
    end = np.minimum(score_from + length, np.repeat(stop, rows_S))
    return Rows(np.maximum(score_from - context_prefix, np.repeat(floor, rows_S)), score_from, end)


def token_groups(sizes: np.ndarray, tokens: int) -> np.ndarray:
    """(G + 1,) edges of groups of consecutive rows, about ``tokens`` each."""
    nth = (np.cumsum(sizes) - sizes) // tokens
    return np.append(np.flatnonzero(np.diff(nth, prepend=-1)), len(nth))


def document_groups(ends_D: np.ndarray, tokens: int, count: int) -> np.ndarray:
    """(G + 1,) edges of at most ``count`` groups of consecutive documents, about ``tokens`` each."""
    edges = np.searchsorted(ends_D, np.arange(1, count) * tokens)
    return np.unique(np.concatenate([[0], edges, [len(ends_D)]]))


def to_batch(split: Split, rows: Rows, boundary_id: int, continues: bool = False) -> Batch:
    """Gather rows, right-padded with the boundary; uncounted targets become IGNORE_INDEX.

    The ends of lines without a known character are ignored, too: no token precedes them.
    """
    index = rows.begin[:, None] + np.arange(int(rows.lengths.max()))
    inside = index < rows.end[:, None]
    index = np.minimum(index, len(split.tokens_N) - 1)
    inputs = np.where(inside, split.inputs_at(index, boundary_id), boundary_id)
    targets = split.tokens_N[index].astype(np.int64)
    counted = inside & (index >= rows.score_from[:, None])
    counted &= (inputs != boundary_id) | (targets != boundary_id)
    targets = np.where(counted, targets, IGNORE_INDEX)
    return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), continues)
