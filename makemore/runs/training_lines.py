"""Which lines stand in the training split, from the run alone: their hashes are kept with it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from makemore.corpus.splits import Corpus
from makemore.errors import UserError
from makemore.sampling.text import SampleRequest, sample

if TYPE_CHECKING:
    from makemore.runs.run import Run

TRIES = 100
"""Samples made for each that is asked for, before giving up."""

MOST_REMEMBERED = 2_000_000
"""Training lines of which a run keeps hashes; a run on more needs its text."""


def hashes(lines: Iterable[str]) -> NDArray[np.int64]:
    """64 bits of BLAKE2b of each line."""
    digests = (hashlib.blake2b(line.encode("utf-8", "surrogatepass"), digest_size=8) for line in lines)
    return np.frombuffer(b"".join(d.digest() for d in digests), dtype="<i8").astype(np.int64)


def hashes_to_keep(corpus: Corpus) -> Tensor | None:
    """Sorted hashes of the distinct training lines, (U,) int64; None of running text, or of too many."""
    if corpus.mode != "lines":
        return None
    hashed, n_lines = [np.zeros(0, np.int64)], 0
    for some in corpus.train_lines():
        n_lines += len(some)
        if n_lines > MOST_REMEMBERED:
            return None
        hashed.append(hashes(some))
    return torch.from_numpy(np.unique(np.concatenate(hashed)))


class SeenLines:
    """The training lines' hashes. A new line is taken for one of U lines once in 2**64 / U times."""

    def __init__(self, sorted_U: NDArray[np.int64]) -> None:
        self.sorted_U = sorted_U

    def __contains__(self, line: object) -> bool:
        wanted = hashes([str(line)])[0]
        at = int(np.searchsorted(self.sorted_U, wanted))
        return at < len(self.sorted_U) and bool(self.sorted_U[at] == wanted)


def seen_lines(run: Run) -> SeenLines:
    """From the run, or from its text where the run has none.

    Raises UserError in ``text`` mode, where nothing is a line, and where neither is there.
    """
    if run.mode == "text":
        raise UserError(
            "--novel-only compares whole lines, and this run's text is one document; see sample --report"
        )
    kept = run.folder.read_seen(run.config)
    return SeenLines(np.unique(hashes(run.documents().all("train"))) if kept is None else kept.numpy())


def novel(run: Run, request: SampleRequest) -> Iterator[str]:
    """As ``sample``, only lines that aren't in the training split: the first ``n`` of them.

    Raises UserError, after those it found, where hardly any is new.
    """
    seen = seen_lines(run)
    left = request.n
    for first in range(0, TRIES * request.n, request.n):
        for text in sample(run, request, first):
            if left and text not in seen:
                yield text
                left -= 1
        if not left:
            return
    raise UserError(
        f"only {request.n - left} of {TRIES * request.n} samples were new; ask for fewer, "
        "or raise --temperature"
    )
