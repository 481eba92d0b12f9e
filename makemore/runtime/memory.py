"""Models are made only where there is memory for them: sizes come from command lines and from strangers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from makemore.errors import UserError
from makemore.models.base import LanguageModel
from makemore.runtime.files import MOST_BYTES
from makemore.runtime.process import memory

OVERHEAD = 1 << 16
"""Bytes that the smallest tensor counts for: modules around it take memory too."""
MOST_TENSORS = 1 << 14
"""A transformer of a thousand layers makes half as many."""
SLACK = 1 << 26
"""Bytes beyond its weights that any model may take, such as tables that are not saved."""

SMALL = 1 << 16
"""Elements of a call that isn't worth asking about."""

TOO_LARGE = "a model of these sizes doesn't fit in memory; lower its --set model.* settings"


class Allowance(TorchDispatchMode):
    """While it lasts, new tensors may take so many bytes together, and none more than that by itself.

    A tensor's size is asked of torch's ``meta`` device, which has no memory, before it is made. Raises
    UserError for one too many.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.left = self.most = most
        self.made = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: to skip it, torch would import its compiler first, which takes a second."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not (func._schema.is_mutable or func.is_view):
            self._charge(func, args, kwargs)
        return func(*args, **kwargs)

    def _charge(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        numbers = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor | int)]
        given = any(isinstance(number, Tensor) for number in numbers)
        # No call makes more elements than that, and asking of a small one would import torch's compiler.
        most = math.prod(max(n.numel() if isinstance(n, Tensor) else abs(n), 1) for n in numbers)
        sizes = [8 * most] if most <= SMALL else _sizes(func, args, kwargs, given)
        if not given:
            self.left -= sum(max(size, OVERHEAD) for size in sizes)
            self.made += len(sizes)
        if self.left < 0 or self.made > MOST_TENSORS or max(sizes, default=0) > self.most:
            raise UserError(TOO_LARGE)


def _sizes(func: Any, args: Any, kwargs: dict[str, Any], given: bool) -> list[int]:
    """Bytes of the tensors that a call would make."""
    args, kwargs = tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs))
    if "device" in kwargs or not given:
        kwargs = {**kwargs, "device": torch.device("meta")}
    try:
        made = func(*args, **kwargs)
    except NotImplementedError:  # values decide the size, which is then no larger than what was given
        return []
    return [t.numel() * t.element_size() for t in tree_leaves(made) if isinstance(t, Tensor)]


def for_weights(tensors: Iterable[Tensor]) -> int:
    """Bytes that making a model may take whose weights are already there."""
    return SLACK + sum(t.numel() * t.element_size() + OVERHEAD for t in tensors) * 2


def construct(
    kind: type[LanguageModel], config: Any, vocab_size: int, boundary_id: int, most: int | None = None
) -> LanguageModel:
    """A fresh model of at most ``most`` bytes; None: as many as the machine has.

    Raises UserError where its sizes take more.
    """
    try:
        with Allowance(most or memory() or MOST_BYTES):
            return kind(config, vocab_size, boundary_id)
    except (RuntimeError, MemoryError, OverflowError, TypeError) as error:
        # Torch says so in words: allocation failed, or a size overflowed.
        said = "memory|overflow|storage|invalid dimensions|must be tuple of ints"
        if isinstance(error, RuntimeError | TypeError) and not re.search(said, str(error), re.IGNORECASE):
            raise
        raise UserError(TOO_LARGE) from None
