"""Exact evaluation: every token of a split scored exactly once.

Models that can look at ``max_len`` tokens and no further see overlapping windows; those that carry
state of constant size see everything before a token, back to its document's beginning. Nats are
summed in float64 and divided once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from makemore.corpus.rows import Rows, cover, to_batch
from makemore.errors import UserError
from makemore.evaluation.intervals import block_totals, text_interval
from makemore.models.base import LanguageModel, MixtureModel
from makemore.tokenizers.base import Tokenizer
from makemore.types import IGNORE_INDEX, Batch, Score, Split, State

UNSPELLABLE_NATS = -math.log(1e-6 / 1_114_112)
"""Price of a character outside the alphabet: an escape of one in a million, then any code point."""
LOGITS_A_CALL = 2**22
TOKENS_A_CALL = 8192
"""Small enough for a call's activations to stay in a CPU's caches."""
STREAM_LENGTH = 512
DECODED_AT_ONCE = 1 << 20

MASS_TOLERANCE = 1e-4

Progress = Callable[[int, int], None]
Read = Callable[[Tensor, Tensor], Tensor]
"""Logits (B, T, V) and targets (B, T) to figures of each target (B, T, F)."""


def nats_of(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Negative log-likelihood of each target, (B, T) float32; 0 where ignored."""
    flat = F.cross_entropy(
        logits_BTV.float().flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    )
    return flat.view(targets_BT.shape)


def _row_groups(rows: Rows, vocab_size: int, longest: int | None = None) -> Iterator[np.ndarray]:
    """Indices of rows of like length, as many at once as memory allows.

    ``longest``: so many tokens of a row go into a call at most.
    """
    order = np.argsort(rows.lengths, kind="stable")
    lengths = np.minimum(rows.lengths[order], longest or rows.lengths.max())
    room = max(1, min(TOKENS_A_CALL, LOGITS_A_CALL // vocab_size))
    at = 0
    while at < len(order):
        # The last of a group is its longest, which all are padded to.
        tokens = lengths[at : at + room] * np.arange(1, len(lengths[at : at + room]) + 1)
        size = max(1, int(np.searchsorted(tokens, room, side="right")))
        yield order[at : at + size]
        at += size


class _Scored(NamedTuple):
    """What a call says of its targets."""

    figures_BTF: np.ndarray
    mass_B: np.ndarray
    """What the probabilities of each row's first target sum to."""
    state: State | None


def _forward(model: LanguageModel, batch: Batch, state: State | None, read: Read) -> _Scored:
    inputs, targets = batch.inputs_BT.to(model.device), batch.targets_BT.to(model.device)
    logits, state = model(inputs, state)
    figures = read(logits, targets).cpu().double().numpy()
    mass_B = logits[:, 0].float().log_softmax(dim=-1).cpu().double().exp().sum(dim=-1)
    return _Scored(figures, mass_B.numpy(), state)


class _Sheet:
    """Figures of every target of a split, each to be filled in once."""

    def __init__(self, split: Split, progress: Progress | None) -> None:
        self.split, self.progress = split, progress
        self.figures_NF: np.ndarray | None = None
        self.done = 0

    def fill(self, rows: Rows, scored: _Scored) -> None:
        """The targets that count in ``rows``."""
        index = rows.begin[:, None] + np.arange(scored.figures_BTF.shape[1])
        counted = (index >= rows.count_from[:, None]) & (index < rows.end[:, None])
        total = len(self.split.tokens_N)
        if self.figures_NF is None:
            self.figures_NF = np.full((total, scored.figures_BTF.shape[2]), np.nan)
        self.figures_NF[index[counted]] = scored.figures_BTF[counted]
        self.done += int(counted.sum())
        off = np.flatnonzero(np.abs(scored.mass_B - 1) > MASS_TOLERANCE)
        if len(off):
            where = _where(self.split, int(rows.begin[off[0]]))
            raise UserError(
                f"the model's probabilities sum to {scored.mass_B[off[0]]:.4f}, not 1, at {where}"
            )
        if self.progress:
            self.progress(self.done, total)

    def finished(self) -> np.ndarray:
        """(N, F). Raises UserError where a value isn't a number or a target wasn't scored once."""
        figures_NF = np.zeros((0, 1)) if self.figures_NF is None else self.figures_NF
        bad = np.flatnonzero(np.isnan(figures_NF[:, 0]))
        if len(bad):
            where = _where(self.split, int(bad[0]))
            raise UserError(f"the model gives no probability at {where}; it has diverged")
        if self.done != len(figures_NF):
            raise AssertionError(f"{self.done} targets scored of {len(figures_NF)}")
        return figures_NF


def _where(split: Split, at: int) -> str:
    document = int(np.searchsorted(split.starts_D, at, side="right"))
    return f"token {at} of {split.name}" + (f" (its line {document})" if len(split.starts_D) > 1 else "")


def _score_rows(model: LanguageModel, rows: Rows, read: Read, sheet: _Sheet) -> None:
    for group in _row_groups(rows, model.vocab_size):
        part = rows.take(group)
        sheet.fill(part, _forward(model, to_batch(sheet.split, part, model.boundary_id), None, read))


def _score_streams(model: LanguageModel, read: Read, sheet: _Sheet) -> None:
    """Unbounded state, carried from a document's beginning to its end."""
    split = sheet.split
    documents = Rows(split.starts_D, split.starts_D, split.ends_D)
    for group in _row_groups(documents, model.vocab_size, STREAM_LENGTH):
        part = documents.take(group)
        state: State | None = model.init_state(len(group), STREAM_LENGTH)
        for at in range(0, int(part.lengths.max()), STREAM_LENGTH):
            begin = np.minimum(part.begin + at, part.end)
            piece = Rows(begin, begin, np.minimum(begin + STREAM_LENGTH, part.end))
            scored = _forward(model, to_batch(split, piece, model.boundary_id), state, read)
            state = scored.state
            sheet.fill(piece, scored)


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
def target_figures(
    model: LanguageModel,
    split: Split,
    read: Read,
    stride: int | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """(N, F) float64: what ``read`` makes of every target's distribution; its first figure is checked.

    Raises UserError, naming the position, where that isn't a number, or where the probabilities of one of
    a sample of distributions don't sum to 1.
    """
    training = model.training
    model.eval()
    sheet = _Sheet(split, progress)
    if len(split.tokens_N):
        rows = context_rows(model, split, stride)
        if rows is None:
            _score_streams(model, read, sheet)
        else:
            _score_rows(model, rows, read, sheet)
    model.train(training)
    return sheet.finished()


@torch.no_grad()
def nats_of_rows(model: LanguageModel, split: Split, rows: Rows) -> np.ndarray:
    """Nats of the targets that count in some windows, (N,) float64, each window with a context of its own;
    not a number for the other targets."""
    sheet = _Sheet(split, None)
    _score_rows(model.eval(), rows, _nats, sheet)
    assert sheet.figures_NF is not None
    return sheet.figures_NF[:, 0]


def _nats(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    return nats_of(logits_BTV, targets_BT)[..., None]


def token_nats(
    model: LanguageModel, split: Split, stride: int | None = None, progress: Progress | None = None
) -> np.ndarray:
    """Nats of every target of a split, (N,) float64. Raises UserError as ``target_figures``."""
    if isinstance(model, MixtureModel):
        weights_K = model.weights.cpu().numpy()
        if abs(weights_K.sum() - 1) > MASS_TOLERANCE:
            raise UserError(f"the mixture's weights sum to {weights_K.sum():.4f}, not 1")
        member_nats = [token_nats(member, split, stride, progress) for member in model.members]
        return mix_nats(np.stack(member_nats), weights_K)
    return target_figures(model, split, _nats, stride, progress)[:, 0]


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
def quick_loss(
    model: LanguageModel,
    split: Split,
    max_tokens: int,
    nats: Callable[[Tensor, Tensor], float] | None = None,
) -> float:
    """Nats per token on an even, fixed choice of windows: the estimate made while training.

    ``nats``: of targets given inputs, summed, by another way than the model's ``forward``.
    """
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
        batch = to_batch(split, rows.take(group), model.boundary_id)
        inputs_BT, targets_BT = batch.inputs_BT.to(model.device), batch.targets_BT.to(model.device)
        if nats is not None:
            total += nats(inputs_BT, targets_BT)
        else:
            logits, _ = model(inputs_BT, None)
            total += float(nats_of(logits, targets_BT).cpu().double().sum())
    model.train(training)
    return total / int((rows.end - rows.count_from).sum())


def unit_totals(split: Split, nats_N: np.ndarray, token_bytes_V: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nats and bytes (U,) of each document, or of each block of a single one.

    Characters that were left out are charged to their document; in a single one, evenly to its blocks.
    """
    lost_D = np.zeros(len(split.starts_D)) if split.unspellable_D is None else split.unspellable_D
    if len(split.starts_D) > 1:
        documents_N = np.repeat(np.arange(len(split.starts_D)), split.ends_D - split.starts_D)
        nats_D = np.bincount(documents_N, weights=nats_N, minlength=len(split.starts_D))
        return nats_D + lost_D * UNSPELLABLE_NATS, split.bytes_D
    nats_U, bytes_U = block_totals(nats_N, token_bytes_V[split.tokens_N], split.bytes)
    return nats_U + float(lost_D.sum()) * UNSPELLABLE_NATS * bytes_U / split.bytes, bytes_U


def summarise(split: Split, nats_N: np.ndarray, token_bytes_V: np.ndarray) -> Score:
    """Totals and intervals of a split scored token by token."""
    nats_U, bytes_U = unit_totals(split, nats_N, token_bytes_V)
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
        ci95_bits_per_byte=text_interval(nats_U, bytes_U),
        unspellable=lost,
        unseen=unseen,
    )


def check_totals(split: Split, tokenizer: Tokenizer) -> None:
    """Raises UserError where the tokens don't spell as many characters and bytes as the text has."""
    chars = size = 0
    for at in range(0, len(split.tokens_N), DECODED_AT_ONCE):
        spelled = np.frombuffer(tokenizer.decode_bytes(split.tokens_N[at : at + DECODED_AT_ONCE]), np.uint8)
        size += len(spelled)
        chars += int(np.count_nonzero(spelled & 0xC0 != 0x80))  # all but UTF-8's continuations
    lost = 0 if split.unspellable_D is None else int(split.unspellable_D.sum())
    if chars + lost != split.chars or not size + lost <= split.bytes <= size + 4 * lost:
        raise UserError(
            f"the tokens of {split.name} spell {chars:,} characters in {size:,} bytes, leaving out {lost:,}, "
            f"but it has {split.chars:,} in {split.bytes:,}: the tokenizer loses some of this text"
        )


def score(
    model: LanguageModel,
    split: Split,
    tokenizer: Tokenizer,
    stride: int | None = None,
    progress: Progress | None = None,
) -> Score:
    """Score a split exactly. Raises UserError for an empty split, tokens that aren't its text, or a model
    gone bad."""
    if not len(split.tokens_N):
        raise UserError(f"the {split.name} split is empty; there is nothing to score")
    check_totals(split, tokenizer)
    return summarise(split, token_nats(model, split, stride, progress), tokenizer.token_bytes())
