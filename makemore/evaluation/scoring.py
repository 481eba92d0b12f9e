"""Exact evaluation: every token of a split is scored exactly once.

Models with a context of ``max_len`` tokens see overlapping windows; models with state of constant size see
the whole document up to each token. Nats are summed in float64 and divided once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from makemore.corpus.rows import Rows, eval_windows, to_batch
from makemore.errors import UserError
from makemore.evaluation.distributions import Fold, gated_nats
from makemore.evaluation.intervals import block_totals, text_interval
from makemore.evaluation.windows import (
    MAX_LOGITS_PER_CALL,
    MAX_TOKENS_PER_CALL,
    STREAM_LENGTH,
    describe_position,
    eval_rows,
    read_documents,
    require_numbers,
    window_reader,
)
from makemore.models.base import LanguageModel, MixtureModel, OnlineModel
from makemore.tokenizers.base import Tokenizer
from makemore.types import IGNORE_INDEX, Batch, Score, Split

UNKNOWN_CHAR_NATS = -math.log(1e-6 / 1_114_112)
"""Loss of a character outside the alphabet: an escape of probability 1e-6, then a uniform code point."""
DECODE_CHUNK_TOKENS = 1 << 20

MASS_TOLERANCE = 1e-4

Progress = Callable[[int, int], None]
TargetFn = Callable[[Tensor, Tensor], Tensor]
"""Maps logits (B, T, V) and targets (B, T) to values of each target (B, T, F)."""


def target_nats(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Negative log-likelihood of each target, (B, T) float32; 0 for ignored targets."""
    flat = F.cross_entropy(
        logits_BTV.float().flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    )
    return flat.view(targets_BT.shape)


def _row_groups(rows: Rows, vocab_size: int, max_length: int | None = None) -> Iterator[np.ndarray]:
    """Yield batches of row indices, by length. A call reads at most ``max_length`` tokens per row."""
    order = np.argsort(rows.lengths, kind="stable")
    lengths = np.minimum(rows.lengths[order], max_length or rows.lengths.max())
    limit = max(1, min(MAX_TOKENS_PER_CALL, MAX_LOGITS_PER_CALL // vocab_size))
    i = 0
    while i < len(order):
        # Rows are padded to the length of the group's last row, the longest.
        tokens = lengths[i : i + limit] * np.arange(1, len(lengths[i : i + limit]) + 1)
        size = max(1, int(np.searchsorted(tokens, limit, side="right")))
        yield order[i : i + size]
        i += size


class _TargetValues:
    """Collects the values of every target of a split, each exactly once."""

    def __init__(self, split: Split, target_fn: TargetFn, progress: Progress | None) -> None:
        self.split, self.target_fn, self.progress = split, target_fn, progress
        self.metrics_NF: np.ndarray | None = None
        self.done = 0

    def add(self, rows: Rows, batch: Batch, logits: Tensor) -> None:
        metrics_BTF = self.target_fn(logits, batch.targets_BT.to(logits.device)).cpu().double().numpy()
        mass_B = logits[:, 0].float().log_softmax(dim=-1).cpu().double().exp().sum(dim=-1).numpy()
        index = rows.begin[:, None] + np.arange(metrics_BTF.shape[1])
        is_scored = (index >= rows.score_from[:, None]) & (index < rows.end[:, None])
        total = len(self.split.tokens_N)
        if self.metrics_NF is None:
            self.metrics_NF = np.full((total, metrics_BTF.shape[2]), np.nan)
        self.metrics_NF[index[is_scored]] = metrics_BTF[is_scored]
        self.done += int(is_scored.sum())
        bad = np.flatnonzero(np.abs(mass_B - 1) > MASS_TOLERANCE)
        if len(bad):
            where = describe_position(self.split, int(rows.begin[bad[0]]))
            raise UserError(f"the model's probabilities sum to {mass_B[bad[0]]:.4f}, not 1, at {where}")
        if self.progress:
            self.progress(self.done, total)

    def result(self) -> np.ndarray:
        """All values, (N, F). Raises UserError if a value is NaN."""
        metrics_NF = np.zeros((0, 1)) if self.metrics_NF is None else self.metrics_NF
        require_numbers(metrics_NF[:, 0], self.split)
        if self.done != len(metrics_NF):
            raise AssertionError(f"{self.done} targets scored of {len(metrics_NF)}")
        return metrics_NF


def _score_rows(model: LanguageModel, rows: Rows, values: _TargetValues) -> None:
    read = window_reader(model, values.split)
    for group in _row_groups(rows, model.vocab_size):
        part = rows.select(group)
        batch, logits = read(part)
        values.add(part, batch, logits)


def _score_streams(model: LanguageModel, values: _TargetValues) -> None:
    """Score models with unbounded state, carried through each document."""
    split = values.split
    documents = Rows(split.starts_D, split.starts_D, split.ends_D)
    for group in _row_groups(documents, model.vocab_size, STREAM_LENGTH):
        for rows, batch, logits in read_documents(model, split, documents.select(group)):
            values.add(rows, batch, logits)


@torch.no_grad()
def target_metrics(
    model: LanguageModel,
    split: Split,
    target_fn: TargetFn,
    stride: int | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Apply ``target_fn`` to the distribution of every target: (N, F) float64; the first value is nats.

    The end of a line without a known character costs ln V nats, since no token precedes it.
    Raises UserError, with the position, if the first value of a target is NaN or if the probabilities at
    the first position of a row don't sum to 1.
    """
    training = model.training
    model.eval()
    values = _TargetValues(split, target_fn, progress)
    if len(split.tokens_N):
        rows = eval_rows(model, split, stride)
        if rows is None:
            _score_streams(model, values)
        else:
            _score_rows(model, rows, values)
    model.train(training)
    metrics_NF = values.result()
    metrics_NF[split.lone_ends(model.boundary_id), 0] = math.log(model.vocab_size)
    return metrics_NF


@torch.no_grad()
def row_nats(model: LanguageModel, split: Split, rows: Rows) -> np.ndarray:
    """Nats (N,) float64 of the targets scored in ``rows``, each row with its own context; NaN for the
    other targets."""
    values, training = _TargetValues(split, _nats_BT1, None), model.training
    _score_rows(model.eval(), rows, values)
    model.train(training)
    assert values.metrics_NF is not None
    return values.metrics_NF[:, 0]


def _nats_BT1(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    return target_nats(logits_BTV, targets_BT)[..., None]


def token_nats(
    model: LanguageModel,
    split: Split,
    stride: int | None = None,
    progress: Progress | None = None,
    folds: Sequence[Fold] = (),
) -> np.ndarray:
    """Nats of every target of a split, (N,) float64. Raises the errors of ``target_metrics``.

    ``folds``: parts of the split in which a gated mixture uses a gate that wasn't fitted there.
    """
    if isinstance(model, MixtureModel) and model.is_gated:
        return gated_nats(model, split, stride, progress, folds)
    if isinstance(model, MixtureModel):
        weights_K = model.weights.cpu().numpy()
        if abs(weights_K.sum() - 1) > MASS_TOLERANCE:
            raise UserError(f"the mixture's weights sum to {weights_K.sum():.4f}, not 1; mix the runs again")
        member_nats = [token_nats(member, split, stride, progress) for member in model.members]
        return mix_nats(np.stack(member_nats), weights_K)
    if isinstance(model, OnlineModel):
        nats_N = model.score(split.tokens_N, split.starts_D)
        nats_N[split.lone_ends(model.boundary_id)] = math.log(model.vocab_size)  # as in ``target_metrics``
        return nats_N
    return target_metrics(model, split, _nats_BT1, stride, progress)[:, 0]


def mix_nats(nats_KN: np.ndarray, weights_K: np.ndarray) -> np.ndarray:
    """Nats (N,) of targets under the weighted sum of the members' probabilities."""
    return -np.logaddexp.reduce(np.log(np.maximum(weights_K, 1e-300))[:, None] - nats_KN, axis=0)


def fit_mixture_weights(nats_KN: np.ndarray, steps: int = 2000) -> np.ndarray:
    """Maximum-likelihood mixture weights (K,), by expectation maximisation (Dempster, Laird & Rubin 1977; for
    interpolation Jelinek & Mercer 1980)."""
    weights_K = np.full(len(nats_KN), 1 / len(nats_KN))
    # Only ratios matter, so scale by the best member's probability to avoid underflow.
    ratio_KN = np.exp(nats_KN.min(axis=0) - nats_KN)
    for _ in range(steps):
        joint_KN = weights_K[:, None] * ratio_KN
        previous_K, weights_K = weights_K, (joint_KN / joint_KN.sum(axis=0)).mean(axis=1)
        if np.abs(weights_K - previous_K).max() < 1e-7:
            break
    return weights_K


@torch.no_grad()
def estimate_loss(
    model: LanguageModel,
    split: Split,
    max_tokens: int,
    nats: Callable[[Tensor, Tensor], float] | None = None,
) -> float:
    """Estimate nats per token on a fixed, evenly spaced subset of windows; used during training.

    ``nats``: returns the summed nats of (inputs, targets), in place of the model's ``forward``.
    """
    training = model.training
    model.eval()
    # Warm carried state up over half a window, so the cold start isn't measured.
    context = STREAM_LENGTH // 2 if model.max_len is None else model.context_prefix
    length = STREAM_LENGTH + context if model.supports_streaming else model.max_len or STREAM_LENGTH
    rows = eval_windows(split, length, context)
    n_rows = max(1, int(len(rows.begin) * min(1.0, max_tokens / len(split.tokens_N))))
    rows = rows.select(np.unique(np.linspace(0, len(rows.begin) - 1, n_rows).astype(np.int64)))
    total = 0.0
    for group in _row_groups(rows, model.vocab_size):
        batch = to_batch(split, rows.select(group), model.boundary_id)
        inputs_BT, targets_BT = batch.inputs_BT.to(model.device), batch.targets_BT.to(model.device)
        if nats is not None:
            total += nats(inputs_BT, targets_BT)
        else:
            logits, _ = model(inputs_BT, None)
            total += float(target_nats(logits, targets_BT).cpu().double().sum())
    model.train(training)
    return total / int((rows.end - rows.score_from).sum())


def unit_totals(split: Split, nats_N: np.ndarray, token_bytes_V: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nats and bytes (U,) of each document, or of each block if there is only one document.

    Nats of unspellable characters are added to their document, or spread evenly over the blocks.
    """
    lost_D = np.zeros(len(split.starts_D)) if split.unknown_chars_D is None else split.unknown_chars_D
    if len(split.starts_D) > 1:
        documents_N = np.repeat(np.arange(len(split.starts_D)), split.ends_D - split.starts_D)
        nats_D = np.bincount(documents_N, weights=nats_N, minlength=len(split.starts_D))
        return nats_D + lost_D * UNKNOWN_CHAR_NATS, split.bytes_D
    nats_U, bytes_U = block_totals(nats_N, token_bytes_V[split.tokens_N], split.bytes)
    return nats_U + float(lost_D.sum()) * UNKNOWN_CHAR_NATS * bytes_U / split.bytes, bytes_U


def make_score(split: Split, nats_N: np.ndarray, token_bytes_V: np.ndarray) -> Score:
    """Totals and confidence intervals of a split from the nats of its tokens."""
    nats_U, bytes_U = unit_totals(split, nats_N, token_bytes_V)
    unseen = None
    if split.in_train_D is not None and split.in_train_D.any() and not split.in_train_D.all():
        unseen = _make_score(split, nats_U, bytes_U, ~split.in_train_D)
    return _make_score(split, nats_U, bytes_U, None, unseen)


def _make_score(
    split: Split,
    nats_U: np.ndarray,
    bytes_U: np.ndarray,
    mask_D: np.ndarray | None,
    unseen: Score | None = None,
) -> Score:
    name = split.name if mask_D is None else f"{split.name}, unseen"
    selected = slice(None) if mask_D is None else mask_D
    nats_U, bytes_U = nats_U[selected], bytes_U[selected]
    sizes_D = (split.ends_D - split.starts_D)[selected]
    unspellable = 0 if split.unknown_chars_D is None else int(split.unknown_chars_D[selected].sum())
    return Score(
        split=name,
        tokens=int(sizes_D.sum()),
        chars=int(split.chars_D[selected].sum()),
        bytes=int(split.bytes_D[selected].sum()),
        nats=float(nats_U.sum()),
        unit_nats_U=nats_U,
        unit_bytes_U=bytes_U,
        ci95_bits_per_byte=text_interval(nats_U, bytes_U),
        unknown_chars=unspellable,
        not_in_train=unseen,
        all_in_train=mask_D is None and split.in_train_D is not None and bool(split.in_train_D.all()),
    )


def check_totals(split: Split, tokenizer: Tokenizer) -> None:
    """Raise UserError unless the tokens decode to as many characters and bytes as the text has."""
    chars = size = 0
    for i in range(0, len(split.tokens_N), DECODE_CHUNK_TOKENS):
        text = np.frombuffer(tokenizer.decode_bytes(split.tokens_N[i : i + DECODE_CHUNK_TOKENS]), np.uint8)
        size += len(text)
        chars += int(np.count_nonzero(text & 0xC0 != 0x80))  # skip UTF-8 continuation bytes
    lost = 0 if split.unknown_chars_D is None else int(split.unknown_chars_D.sum())
    if chars + lost != split.chars or not size + lost <= split.bytes <= size + 4 * lost:
        raise UserError(
            f"the tokens of {split.name} spell {chars:,} characters ({size:,} bytes), leaving out {lost:,}, "
            f"but the text has {split.chars:,} ({split.bytes:,} bytes); use another tokenizer"
        )


def score(
    model: LanguageModel,
    split: Split,
    tokenizer: Tokenizer,
    stride: int | None = None,
    progress: Progress | None = None,
    folds: Sequence[Fold] = (),
) -> Score:
    """Score a split; see ``token_nats``.

    Raises UserError if it is empty, doesn't decode to its text, or the model diverged.
    """
    if not len(split.tokens_N):
        raise UserError(f"the {split.name} split is empty; use more text or another split")
    check_totals(split, tokenizer)
    nats_N = token_nats(model, split, stride, progress, folds)
    return make_score(split, nats_N, tokenizer.token_bytes())
