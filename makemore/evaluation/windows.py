"""The parts of a split that are read at once when it is scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from makemore.corpus.rows import Rows, eval_windows, to_batch
from makemore.errors import UserError
from makemore.kernels import find_kernel
from makemore.models.base import LanguageModel
from makemore.types import Batch, Split, State

MAX_LOGITS_PER_CALL = 2**22
MAX_TOKENS_PER_CALL = 8192
"""Maximum batch size; the activations of a forward pass then stay in the CPU caches."""
STREAM_LENGTH = 512


def eval_rows(model: LanguageModel, split: Split, stride: int | None) -> Rows | None:
    """Windows that score a split once, or None for unbounded state. Raises UserError for a bad stride."""
    if stride is not None and stride < 1:
        raise UserError(f"--stride {stride}: must be 1 or more")
    if model.max_len is None:
        return None
    if model.supports_streaming:
        return eval_windows(split, STREAM_LENGTH + model.context_prefix, model.context_prefix)
    stride = max(1, model.max_len // 2) if stride is None else stride
    if stride > model.max_len:
        raise UserError(f"--stride {stride}: must be at most the context of {model.max_len}")
    return eval_windows(split, model.max_len, model.max_len - stride)


Reader = Callable[[Rows], tuple[Batch, Tensor]]


def window_reader(model: LanguageModel, split: Split) -> Reader:
    """A function that reads rows of a split without a state: the batch, and logits (R, T, V)."""
    kernel = find_kernel(model, torch.float32)

    def read(rows: Rows) -> tuple[Batch, Tensor]:
        batch = to_batch(split, rows, model.boundary_id)
        if kernel is not None:
            return batch, kernel.logits(batch.inputs_BT)
        return batch, model(batch.inputs_BT.to(model.device), None)[0]

    return read


def read_documents(
    model: LanguageModel, split: Split, documents: Rows
) -> Iterator[tuple[Rows, Batch, Tensor]]:
    """Yield the rows of documents that are read in pieces, with a state: rows, batch and logits (R, T, V)."""
    state: State | None = model.init_state(len(documents.begin), STREAM_LENGTH)
    for offset in range(0, int(documents.lengths.max()), STREAM_LENGTH):
        begin = np.minimum(documents.begin + offset, documents.end)
        rows = Rows(begin, begin, np.minimum(begin + STREAM_LENGTH, documents.end))
        batch = to_batch(split, rows, model.boundary_id)
        logits, state = model(batch.inputs_BT.to(model.device), state)
        yield rows, batch, logits


def require_numbers(nats_N: np.ndarray, split: Split) -> None:
    """Raise UserError, with the position, if the loss of a target is NaN."""
    bad = np.flatnonzero(np.isnan(nats_N))
    if len(bad):
        where = describe_position(split, int(bad[0]))
        raise UserError(f"the model's loss is NaN at {where}: it has diverged; train it again")


def describe_position(split: Split, index: int) -> str:
    """Name a token of a split, and its line if there are several."""
    document = int(np.searchsorted(split.starts_D, index, side="right"))
    return f"token {index} of {split.name}" + (f" (line {document})" if len(split.starts_D) > 1 else "")
