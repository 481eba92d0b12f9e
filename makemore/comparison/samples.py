"""Sampling speed and memorised share of a run's samples."""

from __future__ import annotations

import contextlib
import time

import numpy as np

from makemore.errors import UserError
from makemore.evaluation.memorization import MAX_TRAIN_CHARS, longest_copies
from makemore.runs.run import Run
from makemore.sampling import SampleParams, generate
from makemore.sampling.text import SampleRequest, sample

SPEED_SECONDS = 0.5
MAX_TOKENS = 10_000
WARM_UP_TOKENS = 16
N_FIXED_SAMPLES = {"lines": 500, "text": 4}


def sampling_speed(run: Run) -> float:
    """Tokens per second at batch size 1, after warm-up."""
    steps = generate(run.model, np.zeros((1, 1), np.int64), MAX_TOKENS + WARM_UP_TOKENS, SampleParams())
    for _ in range(WARM_UP_TOKENS):
        next(steps)
    started, n_tokens = time.perf_counter(), 0
    for _ in steps:
        n_tokens += 1
        if time.perf_counter() - started > SPEED_SECONDS:
            break
    return n_tokens / max(time.perf_counter() - started, 1e-9)


def fixed_samples(run: Run) -> list[str]:
    """Generate a fixed set of samples (seed 0)."""
    return list(sample(run, SampleRequest(n=N_FIXED_SAMPLES[run.mode], seed=0)))


class Memorization:
    """Memorised share of runs' samples. In ``lines`` mode, the share of samples that are training lines; in
    ``text`` mode, the share of characters in each sample's longest substring shared with train."""

    def __init__(self) -> None:
        self._train: dict[str, list[str] | None] = {}
        self._samples: list[tuple[str, str, list[str]]] = []

    def add(self, run: Run, samples: list[str]) -> None:
        """Add a run's samples; its training text may be missing."""
        digest = run.config.text.digests["train"]
        if digest not in self._train:
            self._train[digest] = None
            with contextlib.suppress(UserError):
                documents = run.documents()
                lines = run.mode == "lines"
                self._train[digest] = (
                    documents.all("train") if lines else [documents.head("train", MAX_TRAIN_CHARS)]
                )
        self._samples.append((digest, run.mode, samples))

    def shares(self) -> list[float | None]:
        """Memorised share of each run, in order of ``add``; None if its training text is missing."""
        shares: list[float | None] = [None] * len(self._samples)
        for digest, train in self._train.items():
            rows = [i for i, (d, _, _) in enumerate(self._samples) if d == digest]
            if train is not None:
                mode = self._samples[rows[0]][1]
                measure = _line_shares if mode == "lines" else _copied_shares
                for i, share in zip(rows, measure(train, [self._samples[i][2] for i in rows]), strict=True):
                    shares[i] = share
        return shares


def _line_shares(train: list[str], samples_R: list[list[str]]) -> list[float]:
    lines = set(train)
    return [sum(line in lines for line in samples) / len(samples) for samples in samples_R]


def _copied_shares(train: list[str], samples_R: list[list[str]]) -> list[float]:
    # All samples at once: sorting the suffixes of train dominates the cost.
    copied = longest_copies("".join(train), [text for samples in samples_R for text in samples])
    parts = np.split(copied, np.cumsum([len(samples) for samples in samples_R])[:-1])
    return [
        float(part.sum() / max(1, sum(map(len, samples))))
        for part, samples in zip(parts, samples_R, strict=True)
    ]
