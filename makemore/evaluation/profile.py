"""What a run is like beyond its score: how sure it is and rightly so, where in a text it is good, what it
finds hard, and how it came there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from makemore.corpus.rows import Rows, cover
from makemore.evaluation.scoring import nats_of, nats_of_rows, target_figures
from makemore.runs.directory import RESULT
from makemore.runs.run import Run
from makemore.runtime.files import well_formed
from makemore.tokenizers import Tokenizer
from makemore.types import Split

BINS = 10
CONTEXT = 256
"""Tokens of a window in which a model of unbounded context is watched."""
POSITION_TOKENS = 1 << 15
"""Tokens from which loss by position in a context is taken."""
SPREAD = 0.95
"""Positions in a document are shown up to the length that so many documents don't exceed."""
HARD = 8
LEAST_COUNT = 5
LEAST_BYTES = 100
"""Of a position in lines or in a context; fewer tell nothing."""
LEAST_SHARE = 1 / 2000


@dataclass(frozen=True)
class Calibration:
    """How often the likeliest token comes, by how likely it was said to be."""

    share: list[float]
    """Of targets in each bin of confidence, the bins being equally wide from 0 to 1."""
    confidence: list[float]
    """Mean, by bin."""
    accuracy: list[float]

    @property
    def error(self) -> float:
        """Expected calibration error (Guo et al. 2017): how far the two are apart, on average."""
        bins = zip(self.share, self.confidence, self.accuracy, strict=True)
        return sum(share * abs(said - was) for share, said, was in bins)


@dataclass(frozen=True)
class HardToken:
    """A token that surprises."""

    text: str
    bits: float
    """A time, on average."""
    times: int
    share: float
    """Of all bits of the text."""


@dataclass(frozen=True)
class Portrait:
    """Figures of one run on one split."""

    calibration: Calibration
    positions: list[tuple[float, float]]
    """Bytes into a line, or tokens of context, and bits per byte there."""
    hard: list[HardToken]
    curve: list[tuple[float, float, float]]
    """Seconds, tokens trained on, and bits per byte of val, as estimated while training."""


def portrait(run: Run, split: Split) -> Portrait:
    """Score a split once more, looking closer. Raises UserError as scoring does."""
    nats_N, confidence_N, hit_N = target_figures(run.model, split, _details).T
    positions = _in_lines(split, run.tokenizer, nats_N) if run.mode == "lines" else _in_context(run, split)
    return Portrait(
        calibration(confidence_N, hit_N),
        positions,
        hard_tokens(split, run.tokenizer, nats_N),
        _curve(run),
    )


def _details(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Nats, probability of the likeliest token, whether it came; (B, T, 3)."""
    likeliest = logits_BTV.float().log_softmax(dim=-1).max(dim=-1)
    hit = likeliest.indices == targets_BT
    return torch.stack([nats_of(logits_BTV, targets_BT), likeliest.values.exp(), hit.float()], dim=-1)


def calibration(confidence_N: np.ndarray, hit_N: np.ndarray) -> Calibration:
    """From each target's highest probability, and whether that token came."""
    bin_N = np.minimum((confidence_N * BINS).astype(np.int64), BINS - 1)
    count = np.bincount(bin_N, minlength=BINS)
    sums = [np.bincount(bin_N, weights=values, minlength=BINS) for values in (confidence_N, hit_N)]
    said, was = (total / np.maximum(count, 1) for total in sums)
    return Calibration((count / len(bin_N)).tolist(), said.tolist(), was.tolist())


def _in_lines(split: Split, tokenizer: Tokenizer, nats_N: np.ndarray) -> list[tuple[float, float]]:
    """By the byte of its line that a token begins at."""
    size_N = tokenizer.token_bytes()[split.tokens_N]
    begin_N = np.cumsum(size_N) - size_N
    place_N = begin_N - np.repeat(begin_N[split.starts_D], split.ends_D - split.starts_D)
    last = int(np.quantile(split.bytes_D, SPREAD))
    return _by(place_N, nats_N, size_N, range(last))


def _in_context(run: Run, split: Split) -> list[tuple[float, float]]:
    """By how many tokens of context there are, in windows that begin in mid-text."""
    model = run.model
    lead = model.lead
    length = min(CONTEXT, model.max_len) if model.max_len and not model.streams else CONTEXT
    rows = cover(split, length + lead, lead)
    wanted = max(1, POSITION_TOKENS // length)
    rows = rows.take(np.unique(np.linspace(0, len(rows.begin) - 1, wanted).astype(np.int64)))
    nats_N = nats_of_rows(model, split, rows)
    seen_N = _context_of(rows, len(nats_N))
    known = np.flatnonzero(seen_N)
    octave = np.ceil(np.log2(seen_N[known])).astype(np.int64)
    size = run.tokenizer.token_bytes()[split.tokens_N[known]]
    found = _by(octave, nats_N[known], size, range(int(octave.max()) + 1))
    return [(2.0**place, bits) for place, bits in found]


def _context_of(rows: Rows, total: int) -> np.ndarray:
    """(N,) tokens before each target in its window, its input included; 0 for those that aren't counted."""
    seen_N = np.zeros(total, np.int64)
    for begin, count_from, end in zip(*rows, strict=True):
        seen_N[count_from:end] = np.arange(count_from - begin + 1, end - begin + 1)
    return seen_N


def _by(
    place_N: np.ndarray, nats_N: np.ndarray, size_N: np.ndarray, places: range
) -> list[tuple[float, float]]:
    """Bits per byte at each place where there is anything."""
    nats, size = (np.bincount(place_N, weights=values, minlength=len(places)) for values in (nats_N, size_N))
    return [(float(i), float(nats[i] / size[i] / math.log(2))) for i in places if size[i] >= LEAST_BYTES]


def hard_tokens(split: Split, tokenizer: Tokenizer, nats_N: np.ndarray) -> list[HardToken]:
    """Tokens that cost most a time, of those that come often enough to tell."""
    times_V = np.bincount(split.tokens_N, minlength=tokenizer.vocab_size)
    nats_V = np.bincount(split.tokens_N, weights=nats_N, minlength=tokenizer.vocab_size)
    often = np.flatnonzero(times_V >= max(LEAST_COUNT, LEAST_SHARE * len(nats_N)))
    hardest = often[np.argsort(-nats_V[often] / times_V[often], kind="stable")][:HARD].tolist()
    total = float(nats_N.sum())
    return [
        HardToken(
            tokenizer.decode([i]),
            float(nats_V[i] / times_V[i] / math.log(2)),
            int(times_V[i]),
            float(nats_V[i]) / total,
        )
        for i in hardest
    ]


def _curve(run: Run) -> list[tuple[float, float, float]]:
    """By the tokens and bytes of the run's own val; none where it doesn't say how many they are."""
    result = run.folder.read_result() or {}
    if "val" not in result:
        return []
    with well_formed(run.folder.path / RESULT):
        tokens_per_byte = result["val"]["tokens"] / result["val"]["bytes"]
    return [curve_point(record, tokens_per_byte) for record in run.folder.read_metrics() if "val" in record]


def curve_point(record: dict[str, Any], tokens_per_byte: float) -> tuple[float, float, float]:
    """A line of ``metrics.jsonl``."""
    return record["elapsed"], record["tokens"], record["val"] * tokens_per_byte / math.log(2)
