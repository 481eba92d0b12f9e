"""The training lines of a run, by the hashes stored with it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from makemore.corpus.splits import Corpus
from makemore.errors import UserError
from makemore.runs.run import Run
from makemore.types import Ints

MAX_HASHED_LINES = 2_000_000
"""Maximum number of lines to store hashes of; larger runs must reread their text."""


def hash_lines(lines: Iterable[str]) -> Ints:
    """64-bit BLAKE2b hash of each line, (len(lines),)."""
    digests = (hashlib.blake2b(line.encode("utf-8", "surrogatepass"), digest_size=8) for line in lines)
    return np.frombuffer(b"".join(d.digest() for d in digests), dtype="<i8").astype(np.int64)


def train_line_hashes(corpus: Corpus) -> Tensor | None:
    """Sorted hashes of distinct training lines, (U,) int64; returns None for text mode or too many lines."""
    if corpus.mode != "lines":
        return None
    hashed, n_lines = [np.zeros(0, np.int64)], 0
    for lines in corpus.train_lines():
        n_lines += len(lines)
        if n_lines > MAX_HASHED_LINES:
            return None
        hashed.append(hash_lines(lines))
    return torch.from_numpy(np.unique(np.concatenate(hashed)))


class TrainLines:
    """Set of U training lines, by hash. A new line is a false positive with probability U / 2**64."""

    def __init__(self, sorted_U: Ints) -> None:
        self.sorted_U = sorted_U

    def __contains__(self, line: object) -> bool:
        line_hash = hash_lines([str(line)])[0]
        index = int(np.searchsorted(self.sorted_U, line_hash))
        return index < len(self.sorted_U) and bool(self.sorted_U[index] == line_hash)


def train_lines(run: Run) -> TrainLines:
    """Load the hashes from the run, or compute them from its text.

    Raises UserError in ``text`` mode, or if both are missing.
    """
    if run.mode == "text":
        raise UserError("--novel-only compares lines, but this run's text is one document; leave it out")
    saved_U = run.folder.read_line_hashes(run.config)
    return TrainLines(
        np.unique(hash_lines(run.documents().all("train"))) if saved_U is None else saved_U.numpy()
    )
