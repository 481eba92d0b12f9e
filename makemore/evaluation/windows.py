"""The parts of a split that are read at once when it is scored."""

from __future__ import annotations

from makemore.corpus.rows import Rows, eval_windows
from makemore.errors import UserError
from makemore.models.base import LanguageModel
from makemore.types import Split

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
