"""Limit the memory that constructing a model may take: its sizes may come from untrusted files."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from makemore.errors import UserError
from makemore.runtime.process import total_memory

M = TypeVar("M")
MIN_TENSOR_BYTES = 1 << 16
"""Minimum bytes counted for a tensor, because its module takes memory too."""
MAX_TENSORS = 1 << 14
"""Maximum number of tensors: twice as many as a transformer of a thousand layers creates."""
EXTRA_BYTES = 1 << 26
"""Bytes that any model may take beyond its weights, e.g. for tables that are not saved."""

SMALL_CALL_ELEMENTS = 1 << 16
"""Number of elements up to which a call's exact output size is not computed."""

TOO_LARGE = "a model of this size doesn't fit in memory; choose smaller settings (model.*)"


class MemoryLimit(TorchDispatchMode):
    """Limits the bytes of new tensors, individually and in total, while it is active.

    The size of a tensor is computed on torch's ``meta`` device, which has no memory, before it is allocated.
    Raises UserError for a tensor beyond the limit.
    """

    def __init__(self, max_bytes: int) -> None:
        super().__init__()
        self.left = self.most = max_bytes
        self.made = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: otherwise torch would import its compiler, which takes a second."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not (func._schema.is_mutable or func.is_view):
            self._charge(func, args, kwargs)
        return func(*args, **kwargs)

    def _charge(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor | int)]
        has_inputs = any(isinstance(leaf, Tensor) for leaf in leaves)
        # An upper bound on output elements; getting a small call's exact size would import torch's compiler.
        max_elements = math.prod(max(n.numel() if isinstance(n, Tensor) else abs(n), 1) for n in leaves)
        sizes = (
            [8 * max_elements]
            if max_elements <= SMALL_CALL_ELEMENTS
            else _output_sizes(func, args, kwargs, has_inputs)
        )
        if not has_inputs:
            self.left -= sum(max(size, MIN_TENSOR_BYTES) for size in sizes)
            self.made += len(sizes)
        if self.left < 0 or self.made > MAX_TENSORS or max(sizes, default=0) > self.most:
            raise UserError(TOO_LARGE)


def _output_sizes(func: Any, args: Any, kwargs: dict[str, Any], has_inputs: bool) -> list[int]:
    """Bytes of each tensor that a call would create."""
    args, kwargs = tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs))
    if "device" in kwargs or not has_inputs:
        kwargs = {**kwargs, "device": torch.device("meta")}
    try:
        outputs = func(*args, **kwargs)
    except NotImplementedError:  # output sizes that depend on values are at most the inputs
        return []
    return [t.numel() * t.element_size() for t in tree_leaves(outputs) if isinstance(t, Tensor)]


def memory_limit_for(tensors: Iterable[Tensor]) -> int:
    """Bytes that constructing a model may take, given its loaded weights."""
    return EXTRA_BYTES + sum(t.numel() * t.element_size() + MIN_TENSOR_BYTES for t in tensors) * 2


def construct_model(
    model_class: Callable[[Any, int, int], M],
    config: Any,
    vocab_size: int,
    boundary_id: int,
    max_bytes: int | None = None,
) -> M:
    """Construct a model of at most ``max_bytes`` (default: the machine's memory), else raise UserError."""
    try:
        with MemoryLimit(max_bytes or total_memory()):
            return model_class(config, vocab_size, boundary_id)
    except (RuntimeError, MemoryError, OverflowError, TypeError) as error:
        # Failed allocations and overflowing sizes are recognised by torch's message.
        pattern = "memory|overflow|storage|invalid dimensions|must be tuple of ints"
        if isinstance(error, RuntimeError | TypeError) and not re.search(pattern, str(error), re.IGNORECASE):
            raise
        raise UserError(TOO_LARGE) from None
