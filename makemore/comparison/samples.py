"""What a run writes: how fast, and how much of it by heart."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import numpy as np

from makemore.errors import UserError
from makemore.evaluation.memorization import MOST_TRAIN, longest_copies
from makemore.sampling import SampleParams, generate
from makemore.sampling.text import SampleRequest, sample

if TYPE_CHECKING:
    from makemore.runs.run import Run

SPEED_SECONDS = 0.5
MOST_TOKENS = 10_000
WARM_UP = 16
SPECIMENS = {"lines": 500, "text": 4}


def sampling_speed(run: Run) -> float:
    """Tokens a second of one text at a time, once it is under way."""
    steps = generate(run.model, np.zeros((1, 1), np.int64), MOST_TOKENS + WARM_UP, SampleParams())
    for _ in range(WARM_UP):
        next(steps)
    begun, made = time.perf_counter(), 0
    for _ in steps:
        made += 1
        if time.perf_counter() - begun > SPEED_SECONDS:
            break
    return made / max(time.perf_counter() - begun, 1e-9)


def specimens(run: Run) -> list[str]:
    """Samples to look at, the same every time."""
    return list(sample(run, SampleRequest(n=SPECIMENS[run.mode], seed=0)))


class ByHeart:
    """Shares of runs' samples that were learned by heart: of lines, those that stand in train; of running
    text, what each sample's longest run of characters that stands in train makes up of it."""

    def __init__(self) -> None:
        self._train: dict[str, list[str] | None] = {}
        self._samples: list[tuple[str, str, list[str]]] = []

    def add(self, run: Run, samples: list[str]) -> None:
        """Samples of a run, whose training text may be gone by now."""
        digest = run.config["corpus"]["digests"]["train"]
        if digest not in self._train:
            self._train[digest] = None
            with contextlib.suppress(UserError):
                documents = run.documents()
                lines = run.mode == "lines"
                self._train[digest] = (
                    documents.all("train") if lines else [documents.head("train", MOST_TRAIN)]
                )
        self._samples.append((digest, run.mode, samples))

    def shares(self) -> list[float | None]:
        """One for each run, in their order; None where the training text is gone."""
        shares: list[float | None] = [None] * len(self._samples)
        for digest, train in self._train.items():
            which = [i for i, (d, _, _) in enumerate(self._samples) if d == digest]
            if train is not None:
                mode = self._samples[which[0]][1]
                count = _of_lines if mode == "lines" else _of_text
                for i, share in zip(which, count(train, [self._samples[i][2] for i in which]), strict=True):
                    shares[i] = share
        return shares


def _of_lines(train: list[str], samples_R: list[list[str]]) -> list[float]:
    lines = set(train)
    return [sum(line in lines for line in samples) / len(samples) for samples in samples_R]


def _of_text(train: list[str], samples_R: list[list[str]]) -> list[float]:
    # All together: most of the work is sorting the training text's suffixes.
    copied = longest_copies("".join(train), [text for samples in samples_R for text in samples])
    parts = np.split(copied, np.cumsum([len(samples) for samples in samples_R])[:-1])
    return [
        float(part.sum() / max(1, sum(map(len, samples))))
        for part, samples in zip(parts, samples_R, strict=True)
    ]
