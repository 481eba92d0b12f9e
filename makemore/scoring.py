"""Exact evaluation: every token of a split scored exactly once.

Models that can look at ``max_len`` tokens and no further see overlapping windows; those that carry
state of constant size see everything before a token, back to its document's beginning. Nats are
summed in float64 and divided once. Intervals are bootstrap percentiles (Efron 1979) over documents,
or over blocks of bytes of a running text, which are the same whatever the tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from makemore.corpus.rows import Rows, cover, to_batch
from makemore.errors import UserError
from makemore.models.base import LanguageModel, MixtureModel
from makemore.types import IGNORE_INDEX, Batch, Score, Split, State

UNSPELLABLE_NATS = -math.log(1e-6 / 1_114_112)
"""Price of a character outside the alphabet: an escape of one in a million, then any code point."""
LOGITS_A_CALL = 2**22
TOKENS_A_CALL = 8192
"""Small enough for a call's activations to stay in a CPU's caches."""
STREAM_LENGTH = 512
BLOCK_BYTES = 512
RESAMPLES = 2000

Progress = Callable[[int, int], None]


def nats_of(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Negative log-likelihood of each target, (B, T) float32; 0 where ignored."""
    flat = F.cross_entropy(
        logits_BTV.float().flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    )
    return flat.view(targets_BT.shape)


def _row_groups(rows: Rows, vocab_size: int) -> Iterator[np.ndarray]:
    """Indices of rows of like length, as many at once as memory allows."""
    order = np.argsort(rows.lengths, kind="stable")
    longest = int(rows.lengths.max())
    size = max(1, min(TOKENS_A_CALL, LOGITS_A_CALL // vocab_size) // longest)
    for at in range(0, len(order), size):
        yield order[at : at + size]


def _forward(model: LanguageModel, batch: Batch, state: State | None) -> tuple[np.ndarray, State | None]:
    inputs, targets = batch.inputs_BT.to(model.device), batch.targets_BT.to(model.device)
    logits, state = model(inputs, state)
    return nats_of(logits, targets).cpu().double().numpy(), state


def _score_rows(
    model: LanguageModel, split: Split, rows: Rows, nats_N: np.ndarray, progress: Progress | None
) -> None:
    done = 0
    for group in _row_groups(rows, model.vocab_size):
        part = rows.take(group)
        nats, _ = _forward(model, to_batch(split, part, model.boundary_id), None)
        index = part.begin[:, None] + np.arange(nats.shape[1])
        counted = (index >= part.count_from[:, None]) & (index < part.end[:, None])
        nats_N[index[counted]] = nats[counted]
        done += int(counted.sum())
        if progress:
            progress(done, len(nats_N))


def _score_streams(model: LanguageModel, split: Split, nats_N: np.ndarray, progress: Progress | None) -> None:
    """Unbounded state, carried from a document's beginning to its end."""
    documents = Rows(split.starts_D, split.starts_D, split.ends_D)
    done = 0
    for group in _row_groups(documents, model.vocab_size):
        part = documents.take(group)
        state: State | None = model.init_state(len(group), STREAM_LENGTH)
        for at in range(0, int(part.lengths.max()), STREAM_LENGTH):
            begin = np.minimum(part.begin + at, part.end)
            piece = Rows(begin, begin, np.minimum(begin + STREAM_LENGTH, part.end))
            nats, state = _forward(model, to_batch(split, piece, model.boundary_id), state)
            index = begin[:, None] + np.arange(nats.shape[1])
            inside = index < piece.end[:, None]
            nats_N[index[inside]] = nats[inside]
            done += int(inside.sum())
            if progress:
                progress(done, len(nats_N))


def context_rows(model: LanguageModel, split: Split, stride: int | None) -> Rows | None:
    """The windows that score a split once; None where the model carries unbounded state.

    Raises UserError for a stride that is less than 1 or more than the context.
    """
    if stride is not None and stride < 1:
        raise UserError(f"--stride {stride}: must be 1 or more")
    if model.max_len is None:
        return None
    if model.streams:
        return cover(split, STREAM_LENGTH + model.lead, model.lead)
    stride = max(1, model.max_len // 2) if stride is None else stride
    if stride > model.max_len:
        raise UserError(f"--stride {stride}: must be at most the context of {model.max_len}")
    return cover(split, model.max_len, model.max_len - stride)


@torch.no_grad()
def token_nats(
    model: LanguageModel, split: Split, stride: int | None = None, progress: Progress | None = None
) -> np.ndarray:
    """Nats of every target of a split, (N,) float64.

    Raises UserError where the model gives a value that is not a number, naming the position.
    """
    if isinstance(model, MixtureModel):
        member_nats = [token_nats(member, split, stride, progress) for member in model.members]
        return mix_nats(np.stack(member_nats), model.weights.cpu().numpy())
    training = model.training
    model.eval()
    nats_N = np.full(len(split.tokens_N), np.nan)
    if len(nats_N):
        rows = context_rows(model, split, stride)
        if rows is None:
            _score_streams(model, split, nats_N, progress)
        else:
            _score_rows(model, split, rows, nats_N, progress)
    model.train(training)
    if np.isnan(nats_N).any():
        at = int(np.flatnonzero(np.isnan(nats_N))[0])
        raise UserError(f"the model gives no probability at token {at} of {split.name}; it has diverged")
    return nats_N


def mix_nats(nats_KN: np.ndarray, weights_K: np.ndarray) -> np.ndarray:
    """Nats (N,) of targets under the weighted sum of members' probabilities."""
    return -np.logaddexp.reduce(np.log(np.maximum(weights_K, 1e-300))[:, None] - nats_KN, axis=0)


def fit_weights(nats_KN: np.ndarray, steps: int = 2000) -> np.ndarray:
    """The weights (K,) under which targets are likeliest, by expectation maximisation
    (Dempster, Laird & Rubin 1977; for interpolation Jelinek & Mercer 1980)."""
    weights_K = np.full(len(nats_KN), 1 / len(nats_KN))
    # Scaled by the best member's probability: ratios are all that counts.
    ratio_KN = np.exp(nats_KN.min(axis=0) - nats_KN)
    for _ in range(steps):
        joint_KN = weights_K[:, None] * ratio_KN
        before, weights_K = weights_K, (joint_KN / joint_KN.sum(axis=0)).mean(axis=1)
        if np.abs(weights_K - before).max() < 1e-7:
            break
    return weights_K


@torch.no_grad()
def quick_loss(model: LanguageModel, split: Split, max_tokens: int) -> float:
    """Nats per token on an even, fixed choice of windows: the estimate made while training."""
    training = model.training
    model.eval()
    # Carried state warms up over half a window, so that its cold start isn't what is measured.
    context = STREAM_LENGTH // 2 if model.max_len is None else model.lead
    length = STREAM_LENGTH + context if model.streams else model.max_len or STREAM_LENGTH
    rows = cover(split, length, context)
    wanted = max(1, int(len(rows.begin) * min(1.0, max_tokens / len(split.tokens_N))))
    rows = rows.take(np.unique(np.linspace(0, len(rows.begin) - 1, wanted).astype(np.int64)))
    total = 0.0
    for group in _row_groups(rows, model.vocab_size):
        nats, _ = _forward(model, to_batch(split, rows.take(group), model.boundary_id), None)
        total += float(nats.sum())
    model.train(training)
    return total / int((rows.end - rows.count_from).sum())


def bootstrap_units(split: Split, token_bytes_V: np.ndarray) -> np.ndarray:
    """(N,) int64 unit of each target: its document, or the block of bytes it begins in."""
    if len(split.starts_D) > 1:
        return np.repeat(np.arange(len(split.starts_D)), split.ends_D - split.starts_D)
    size = token_bytes_V[split.tokens_N]
    return (np.cumsum(size) - size) // BLOCK_BYTES


def bootstrap_interval(nats_U: np.ndarray, bytes_U: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % interval of total nats over total bytes, by resampling units; in bits per byte."""
    if not np.isfinite(nats_U).all():  # counts without smoothing: something was held impossible
        return math.inf, math.inf
    rng = np.random.default_rng(seed)
    units = len(nats_U)
    ratios = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        times_U = np.bincount(rng.integers(0, units, units), minlength=units)
        ratios[i] = (times_U @ nats_U) / max(1, times_U @ bytes_U)
    low, high = np.percentile(ratios / math.log(2), [2.5, 97.5])
    return float(low), float(high)


def _unspellable_nats(split: Split, units_N: np.ndarray, n_units: int) -> np.ndarray:
    """(U,) what the left-out characters cost, spread evenly over the units of their document."""
    if split.unspellable_D is None:
        return np.zeros(n_units)
    cost_D = split.unspellable_D * UNSPELLABLE_NATS
    if len(split.starts_D) > 1:
        return cost_D
    return np.full(n_units, float(cost_D.sum()) / n_units)


def summarise(split: Split, nats_N: np.ndarray, token_bytes_V: np.ndarray) -> Score:
    """Totals and intervals of a split scored token by token."""
    units_N = bootstrap_units(split, token_bytes_V)
    nats_U = np.bincount(units_N, weights=nats_N)
    nats_U += _unspellable_nats(split, units_N, len(nats_U))
    if len(split.starts_D) > 1:
        bytes_U = split.bytes_D
    else:
        bytes_U = np.bincount(units_N, weights=token_bytes_V[split.tokens_N]).astype(np.int64)
    unseen = None
    if split.seen_D is not None and split.seen_D.any() and not split.seen_D.all():
        unseen = _total(split, nats_U, bytes_U, ~split.seen_D)
    return _total(split, nats_U, bytes_U, None, unseen)


def _total(
    split: Split,
    nats_U: np.ndarray,
    bytes_U: np.ndarray,
    keep_D: np.ndarray | None,
    unseen: Score | None = None,
) -> Score:
    name = split.name if keep_D is None else f"{split.name}, unseen"
    keep = slice(None) if keep_D is None else keep_D
    nats_U, bytes_U = nats_U[keep], bytes_U[keep]
    sizes_D = (split.ends_D - split.starts_D)[keep]
    lost = 0 if split.unspellable_D is None else int(split.unspellable_D[keep].sum())
    return Score(
        split=name,
        tokens=int(sizes_D.sum()),
        chars=int(split.chars_D[keep].sum()),
        bytes=int(split.bytes_D[keep].sum()),
        nats=float(nats_U.sum()),
        unit_nats_U=nats_U,
        unit_bytes_U=bytes_U,
        ci95_bits_per_byte=bootstrap_interval(nats_U, bytes_U),
        unspellable=lost,
        unseen=unseen,
    )


def score(
    model: LanguageModel,
    split: Split,
    token_bytes_V: np.ndarray,
    stride: int | None = None,
    progress: Progress | None = None,
) -> Score:
    """Score a split exactly. Raises UserError for an empty split or a model gone bad."""
    if not len(split.tokens_N):
        raise UserError(f"the {split.name} split is empty; there is nothing to score")
    return summarise(split, token_nats(model, split, stride, progress), token_bytes_V)
