"""The members of a mixture, predicting the same tokens side by side."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from makemore.corpus.rows import Rows, token_groups
from makemore.evaluation.windows import (
    MAX_LOGITS_PER_CALL,
    MAX_TOKENS_PER_CALL,
    eval_rows,
    read_documents,
    require_numbers,
    window_reader,
)
from makemore.models.base import LanguageModel, MixtureModel
from makemore.types import Split

MAX_FITTED_TOKENS, MAX_FITTED_LOGITS = 1 << 16, 1 << 23
"""Limits of the text that gates are fitted on."""


Fold = tuple[int, int]
"""The end of a part of a split, and the number of the gate that mixes the members there."""


class Predictions(NamedTuple):
    """What each member predicts for tokens ``begin``, ``begin + 1``, … of a split."""

    begin: int
    log_probs: Tensor
    """(n, K, V) float32 on the CPU."""
    targets: Tensor
    """(n,) int64."""
    gate: int
    """Number of the gate that mixes the members there."""


@torch.no_grad()
def log_probs(model: LanguageModel, split: Split, stride: int | None = None) -> Iterator[Tensor]:
    """Yield the log-probabilities (n, V) of each token of a split, in order, with the contexts of scoring."""
    rows = eval_rows(model, split, stride)
    if rows is not None:
        yield from _window_log_probs(model, split, rows)
        return
    documents = Rows(split.starts_D, split.starts_D, split.ends_D)
    for group in _groups(documents, model.vocab_size):
        read = read_documents(model, split, documents.select(group))
        pieces = (torch.log_softmax(logits.float().cpu(), dim=-1) for _, _, logits in read)
        if group.stop - group.start == 1:
            yield from (piece[0] for piece in pieces)
        else:
            lengths = torch.from_numpy(documents.lengths[group])
            joined = torch.cat(list(pieces), dim=1)
            yield joined[torch.arange(joined.shape[1]) < lengths[:, None]]


def _groups(rows: Rows, vocab_size: int) -> Iterator[slice]:
    """Groups of consecutive rows."""
    limit = max(1, min(MAX_TOKENS_PER_CALL, MAX_LOGITS_PER_CALL // vocab_size))
    edges = token_groups(rows.lengths, limit)
    yield from (slice(int(a), int(b)) for a, b in itertools.pairwise(edges))


def _window_log_probs(model: LanguageModel, split: Split, rows: Rows) -> Iterator[Tensor]:
    read = window_reader(model, split)
    for group in _groups(rows, model.vocab_size):
        part = rows.select(group)
        _, logits = read(part)
        index = part.begin[:, None] + np.arange(logits.shape[1])
        is_scored = (index >= part.score_from[:, None]) & (index < part.end[:, None])
        yield torch.log_softmax(logits.float().cpu()[torch.from_numpy(is_scored)], dim=-1)


def align(
    streams: Sequence[Iterator[Tensor]], split: Split, folds: Sequence[Fold] = ()
) -> Iterator[Predictions]:
    """Cut members' log-probabilities into pieces of the same tokens, each within a fold (default: all by the
    first gate). All members but the last compute their next piece in a thread while the others are read."""
    streams = [*map(_ahead, streams[:-1]), *streams[-1:]]
    pending = [torch.zeros(0, 0) for _ in streams]
    begin, total = 0, len(split.tokens_N)
    for end, gate in folds or [(total, 0)]:
        while begin < min(end, total):
            for k, stream in enumerate(streams):
                while not len(pending[k]):
                    pending[k] = next(stream)
            n = min(min(end, total) - begin, *map(len, pending))
            targets = torch.from_numpy(split.tokens_N[begin : begin + n].astype(np.int64))
            yield Predictions(begin, torch.stack([piece[:n] for piece in pending], dim=1), targets, gate)
            pending = [piece[n:] for piece in pending]
            begin += n


def _ahead(stream: Iterator[Tensor]) -> Iterator[Tensor]:
    """Yield the items of a stream; a thread computes the next item while the caller uses the current one."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, stream, None)
        while (item := following.result()) is not None:
            following = pool.submit(next, stream, None)
            yield item


def nats_of(log_probs: Tensor, targets: Tensor) -> np.ndarray:
    """Nats (n, …) of targets (n,) by log-probabilities (n, …, V)."""
    index = targets.reshape(-1, *[1] * (log_probs.ndim - 1)).expand(*log_probs.shape[:-1], 1)
    return -log_probs.gather(-1, index)[..., 0].double().numpy()


def n_fitted_tokens(val: Split, vocab_size: int) -> int:
    """Number of tokens, from the start of val, that gates are fitted on."""
    return min(len(val.tokens_N), MAX_FITTED_TOKENS, MAX_FITTED_LOGITS // vocab_size)


def halves(val: Split, vocab_size: int) -> list[Fold]:
    """Two parts of val, each with the gate that was not fitted on it: gates are fitted on halves of the first
    ``n_fitted_tokens``, which meet at the start of a document if there is one."""
    n_fitted = n_fitted_tokens(val, vocab_size)
    middle = n_fitted // 2
    inner_D = val.starts_D[(val.starts_D > 0) & (val.starts_D < n_fitted)]
    if len(inner_D):
        middle = int(inner_D[np.abs(inner_D - middle).argmin()])
    return [(middle, 1), (len(val.tokens_N), 2)]


@torch.no_grad()
def gated_nats(
    model: MixtureModel,
    split: Split,
    stride: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    folds: Sequence[Fold] = (),
) -> np.ndarray:
    """Nats (N,) float64 of every target under a gated mixture.

    ``folds``: parts of the split with the gates to use there (default: the first gate).
    Raises UserError if the model has diverged.
    """
    nats_N = np.empty(len(split.tokens_N))
    for piece in align([log_probs(member, split, stride) for member in model.members], split, folds):
        nats = nats_of(model.mix(piece.log_probs.to(model.device), piece.gate).cpu(), piece.targets)
        nats_N[piece.begin : piece.begin + len(nats)] = nats
        if progress:
            progress(piece.begin + len(nats), len(nats_N))
    require_numbers(nats_N, split)
    nats_N[split.lone_ends(model.boundary_id)] = math.log(model.vocab_size)  # as in ``target_metrics``
    return nats_N
