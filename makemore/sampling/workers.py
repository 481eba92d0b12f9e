"""Divide samples among threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from threading import Event
from typing import TypeVar

import torch

from makemore.models.base import CountModel, LanguageModel

MIN_SAMPLES_PER_THREAD = 16
"""Minimum number of samples per thread."""

T = TypeVar("T")


def n_sampling_threads(model: LanguageModel, rows: int) -> int:
    """Number of sampling threads: as many as torch uses, if numpy's BLAS is single-threaded, else 1.

    At these sizes OpenBLAS's own threads cost more than they gain; it reads ``OPENBLAS_NUM_THREADS``, which
    the command line sets, when numpy is imported. Count models do lookups that hold the GIL.
    """
    single_threaded_blas = os.environ.get("OPENBLAS_NUM_THREADS") == "1"
    if not single_threaded_blas or model.device.type != "cpu" or isinstance(model, CountModel):
        return 1
    return max(1, min(torch.get_num_threads(), rows // MIN_SAMPLES_PER_THREAD))


def run_in_threads(work: Callable[[range, Event], list[T]], samples: range, n_threads: int) -> list[T]:
    """Run ``work`` on one range of ``samples`` per thread and return the results in order.

    The event is set when the remaining results are no longer needed; ``work`` may then return early.
    """
    cancelled = Event()
    bounds = [samples.start + len(samples) * i // n_threads for i in range(n_threads + 1)]
    ranges = [range(a, b) for a, b in pairwise(bounds)]
    if n_threads == 1:
        return work(samples, cancelled)
    with ThreadPoolExecutor(n_threads) as pool:
        try:
            return [item for results in pool.map(work, ranges, [cancelled] * n_threads) for item in results]
        finally:
            cancelled.set()
