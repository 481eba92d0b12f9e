"""Diagnostics of one run: calibration, loss by position, hardest tokens, and its val curve."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from makemore.corpus.rows import Rows, eval_windows
from makemore.evaluation.scoring import row_nats, target_metrics, target_nats
from makemore.runs.run import Run
from makemore.tokenizers import Tokenizer
from makemore.types import Split

BINS = 10
CONTEXT = 256
"""Window length in tokens for models without a maximum context."""
POSITION_TOKENS = 1 << 15
"""Tokens scored for loss by context length."""
LENGTH_QUANTILE = 0.95
"""Positions are shown up to this quantile of document length."""
N_HARD_TOKENS = 8
MIN_COUNT = 5
MIN_BYTES = 100
"""Positions with fewer bytes are dropped as too noisy."""
MIN_SHARE = 1 / 2000


@dataclass(frozen=True)
class Calibration:
    """Accuracy of the most probable token, by confidence."""

    share: list[float]
    """Share of targets in each of ``BINS`` equal-width confidence bins."""
    confidence: list[float]
    """Mean confidence by bin."""
    accuracy: list[float]

    @property
    def error(self) -> float:
        """Expected calibration error (Guo et al. 2017): mean absolute difference between
        confidence and accuracy, weighted by the share of targets."""
        bins = zip(self.share, self.confidence, self.accuracy, strict=True)
        return sum(share * abs(confidence - accuracy) for share, confidence, accuracy in bins)


@dataclass(frozen=True, kw_only=True)
class HardToken:
    """A token with a high loss."""

    text: str
    bits: float
    """Mean bits per occurrence."""
    times: int
    share: float
    """Share of the text's total bits."""


@dataclass(frozen=True)
class RunProfile:
    """Diagnostics of one run on one split."""

    calibration: Calibration
    positions: list[tuple[float, float]]
    """Byte offset in a line, or number of context tokens; and bits per byte there."""
    hard: list[HardToken]
    curve: list[tuple[float, float, float]]
    """Seconds, training tokens, and estimated val bits per byte during training."""


def profile_run(run: Run, split: Split) -> RunProfile:
    """Score a split and collect its diagnostics. Raises the errors of ``target_metrics``."""
    nats_N, confidence_N, hit_N = target_metrics(run.model, split, _target_stats).T
    positions = _by_offset(split, run.tokenizer, nats_N) if run.mode == "lines" else _by_context(run, split)
    return RunProfile(
        calibration(confidence_N, hit_N),
        positions,
        hard_tokens(split, run.tokenizer, nats_N),
        _val_curve(run),
    )


def _target_stats(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Nats, highest probability, and whether that token was the target, (B, T, 3)."""
    likeliest = logits_BTV.float().log_softmax(dim=-1).max(dim=-1)
    hit = likeliest.indices == targets_BT
    return torch.stack([target_nats(logits_BTV, targets_BT), likeliest.values.exp(), hit.float()], dim=-1)


def calibration(confidence_N: np.ndarray, hit_N: np.ndarray) -> Calibration:
    """Bin predictions by confidence: the highest probability; ``hit_N``: whether it was the target."""
    bin_N = np.minimum((confidence_N * BINS).astype(np.int64), BINS - 1)
    count = np.bincount(bin_N, minlength=BINS)
    sums = [np.bincount(bin_N, weights=values, minlength=BINS) for values in (confidence_N, hit_N)]
    confidence, accuracy = (total / np.maximum(count, 1) for total in sums)
    return Calibration((count / len(bin_N)).tolist(), confidence.tolist(), accuracy.tolist())


def _by_offset(split: Split, tokenizer: Tokenizer, nats_N: np.ndarray) -> list[tuple[float, float]]:
    """Bits per byte by a token's byte offset in its line."""
    size_N = tokenizer.token_bytes()[split.tokens_N]
    begin_N = np.cumsum(size_N) - size_N
    offset_N = begin_N - np.repeat(begin_N[split.starts_D], split.ends_D - split.starts_D)
    last = int(np.quantile(split.bytes_D, LENGTH_QUANTILE))
    return _by_bin(offset_N, nats_N, size_N, range(last))


def _by_context(run: Run, split: Split) -> list[tuple[float, float]]:
    """Bits per byte by tokens of context (powers of two), in windows spread over the text."""
    model = run.model
    context_prefix = model.context_prefix
    length = min(CONTEXT, model.max_len) if model.max_len and not model.supports_streaming else CONTEXT
    rows = eval_windows(split, length + context_prefix, context_prefix)
    n_rows = max(1, POSITION_TOKENS // length)
    rows = rows.select(np.unique(np.linspace(0, len(rows.begin) - 1, n_rows).astype(np.int64)))
    nats_N = row_nats(model, split, rows)
    seen_N = _context_lengths(rows, len(nats_N))
    scored = np.flatnonzero(seen_N)
    octave = np.ceil(np.log2(seen_N[scored])).astype(np.int64)
    size = run.tokenizer.token_bytes()[split.tokens_N[scored]]
    by_octave = _by_bin(octave, nats_N[scored], size, range(int(octave.max()) + 1))
    return [(2.0**exponent, bits) for exponent, bits in by_octave]


def _context_lengths(rows: Rows, total: int) -> np.ndarray:
    """Number of context tokens of each target in its window, (N,); 0 for targets that aren't scored."""
    seen_N = np.zeros(total, np.int64)
    for begin, score_from, end in zip(*rows, strict=True):
        seen_N[score_from:end] = np.arange(score_from - begin + 1, end - begin + 1)
    return seen_N


def _by_bin(
    bin_N: np.ndarray, nats_N: np.ndarray, size_N: np.ndarray, bins: range
) -> list[tuple[float, float]]:
    """Bits per byte of each bin with at least ``MIN_BYTES``."""
    nats, size = (np.bincount(bin_N, weights=values, minlength=len(bins)) for values in (nats_N, size_N))
    return [(float(i), float(nats[i] / size[i] / math.log(2))) for i in bins if size[i] >= MIN_BYTES]


def hard_tokens(split: Split, tokenizer: Tokenizer, nats_N: np.ndarray) -> list[HardToken]:
    """The frequent tokens with the highest mean loss."""
    times_V = np.bincount(split.tokens_N, minlength=tokenizer.vocab_size)
    nats_V = np.bincount(split.tokens_N, weights=nats_N, minlength=tokenizer.vocab_size)
    frequent = np.flatnonzero(times_V >= max(MIN_COUNT, MIN_SHARE * len(nats_N)))
    hardest = frequent[np.argsort(-nats_V[frequent] / times_V[frequent], kind="stable")][
        :N_HARD_TOKENS
    ].tolist()
    total = float(nats_N.sum())
    return [
        HardToken(
            text=tokenizer.decode([i]),
            bits=float(nats_V[i] / times_V[i] / math.log(2)),
            times=int(times_V[i]),
            share=float(nats_V[i]) / total,
        )
        for i in hardest
    ]


def _val_curve(run: Run) -> list[tuple[float, float, float]]:
    """The val curve in bits per byte. Returns an empty list if the run has no val score to convert with."""
    result = run.folder.read_result()
    if result is None or result.val is None or not result.val.bytes:
        return []
    tokens_per_byte = result.val.tokens / result.val.bytes
    return [
        curve_point(record, tokens_per_byte)
        for record in run.folder.metrics.read()
        if {"elapsed", "tokens", "val"} <= record.keys()
    ]


def curve_point(record: dict[str, Any], tokens_per_byte: float) -> tuple[float, float, float]:
    """Convert a record of ``metrics.jsonl`` to (seconds, tokens, bits per byte)."""
    return record["elapsed"], record["tokens"], record["val"] * tokens_per_byte / math.log(2)
