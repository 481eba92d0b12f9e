"""Samples shared among threads, each of which makes its own from beginning to end."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from threading import Event
from typing import TypeVar

import torch

from makemore.models.base import CountModel, LanguageModel

FEWEST = 16
"""Samples that are worth a thread."""

T = TypeVar("T")


def threads(model: LanguageModel, rows: int) -> int:
    """How many to use: as many as torch does, if the BLAS that numpy calls doesn't start its own.

    Those of OpenBLAS cost more, at sizes like these, than they bring. It reads
    ``OPENBLAS_NUM_THREADS`` when numpy is imported; the command line sets it. ``count`` looks up rather
    than multiplies, and Python's lock lets one thread at a time do so.
    """
    alone = os.environ.get("OPENBLAS_NUM_THREADS") == "1"
    if not alone or model.device.type != "cpu" or isinstance(model, CountModel):
        return 1
    return max(1, min(torch.get_num_threads(), rows // FEWEST))


def share(work: Callable[[range, Event], list[T]], samples: range, n_threads: int) -> list[T]:
    """What ``work`` makes of all samples, in order, each thread having a stretch of them.

    The event is set where the others' results are no longer wanted: work may then end at once.
    """
    over = Event()
    edges = [samples.start + len(samples) * i // n_threads for i in range(n_threads + 1)]
    shares = [range(a, b) for a, b in pairwise(edges)]
    if n_threads == 1:
        return work(samples, over)
    with ThreadPoolExecutor(n_threads) as pool:
        try:
            return [one for part in pool.map(work, shares, [over] * n_threads) for one in part]
        finally:
            over.set()
