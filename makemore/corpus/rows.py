"""Rows of a batch: stretches of a document, some of whose targets count."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from makemore.types import IGNORE_INDEX, Batch, Split


class Rows(NamedTuple):
    """Stretches ``begin … end`` (indices of targets, (R,) int64); targets from ``count_from`` on count."""

    begin: np.ndarray
    count_from: np.ndarray
    end: np.ndarray

    def take(self, index: np.ndarray | slice) -> Rows:
        return Rows(self.begin[index], self.count_from[index], self.end[index])

    @property
    def lengths(self) -> np.ndarray:
        return self.end - self.begin


def cover(split: Split, length: int, overlap: int) -> Rows:
    """Rows of at most ``length`` that count every target exactly once.

    A row in mid-document repeats the last ``overlap`` tokens before it as uncounted context.
    """
    sizes = split.ends_D - split.starts_D
    stride = length - overlap
    rows_D = np.maximum(1, -(-(sizes - overlap) // stride))
    first = np.repeat(split.starts_D, rows_D)
    nth = np.arange(len(first)) - np.repeat(np.cumsum(rows_D) - rows_D, rows_D)
    begin = first + nth * stride
    end = np.minimum(begin + length, np.repeat(split.ends_D, rows_D))
    return Rows(begin, np.where(nth > 0, begin + overlap, begin), end)


def shuffled(split: Split, length: int, lead: int, rng: np.random.Generator) -> Rows:
    """Rows of an epoch: whole documents, longer ones in pieces of ``length`` cut at a random phase.

    A piece in mid-document is preceded by ``lead`` uncounted tokens.
    """
    sizes = split.ends_D - split.starts_D
    phase_D = np.where(sizes > length, rng.integers(0, length, len(sizes)), 0)
    rows_D = -(-(sizes + phase_D) // length)
    first = np.repeat(split.starts_D, rows_D)
    nth = np.arange(len(first)) - np.repeat(np.cumsum(rows_D) - rows_D, rows_D)
    # Moved inwards at a document's ends, so that every piece has the full length.
    room = np.repeat(np.maximum(sizes - length, 0), rows_D)
    count_from = first + np.clip(nth * length - np.repeat(phase_D, rows_D), 0, room)
    end = np.minimum(count_from + length, np.repeat(split.ends_D, rows_D))
    return Rows(np.maximum(count_from - lead, first), count_from, end)


def to_batch(split: Split, rows: Rows, boundary_id: int, continues: bool = False) -> Batch:
    """Rows side by side, padded on the right with the boundary; targets that don't count ignored."""
    index = rows.begin[:, None] + np.arange(int(rows.lengths.max()))
    inside = index < rows.end[:, None]
    index = np.minimum(index, len(split.tokens_N) - 1)
    inputs = np.where(inside, split.inputs_at(index, boundary_id), boundary_id)
    counted = inside & (index >= rows.count_from[:, None])
    targets = np.where(counted, split.tokens_N[index].astype(np.int64), IGNORE_INDEX)
    return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), continues)
