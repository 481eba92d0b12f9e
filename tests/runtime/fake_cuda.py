"""CUDA that isn't there: tensors that say they are on it and are computed on the CPU.

What CUDA refuses is refused (tensors of two devices in one operation), and what the CPU would wait for is
written down. Kernels, streams and memory only a real device shows.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
aten = torch.ops.aten
WAITS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique2, aten.equal}
"""Operations whose result, or its shape, the CPU asks for."""
MIXED = {aten.copy_, aten._to_copy, aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
"""Those that take tensors of two devices."""


class Far(Tensor):
    """A tensor on the pretended device; its numbers are in ``near``. To torch it is on "meta"."""

    near: Tensor
    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, near: Tensor) -> Far:
        shell = torch.empty_strided(near.shape, near.stride(), dtype=near.dtype, device="meta")
        far = torch.Tensor._make_subclass(cls, shell, False)
        far.near = near
        return far

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} after the pretence")


class Pretence(TorchDispatchMode):
    """Computes near what is far; ``waits`` names what waited."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten.is_pinned.default:
            return True
        if func in (aten._pin_memory.default, aten.pin_memory.default):
            return args[0]
        kwargs = dict(kwargs or {})
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        far = [t for t in tensors if isinstance(t, Far)]
        name, to = func.overloadpacket, kwargs.get("device")
        if far and name not in MIXED and any(t.ndim for t in tensors if not isinstance(t, Far)):
            raise RuntimeError(f"{name}: tensors of two devices")
        goes_far = bool(far) if to is None else to.type != "cpu"
        if name is aten.copy_:
            goes_far = isinstance(args[0], Far)
        if far and (name in WAITS or not goes_far):
            self.waits.append(str(name))
        if to is not None:
            kwargs["device"] = CPU
        out = func(*tree_map(_near, args), **tree_map(_near, kwargs))
        given = {id(t.near): t for t in far}
        return tree_map(functools.partial(_far, given), out) if goes_far else out


def _near(value: Any) -> Any:
    return value.near if isinstance(value, Far) else value


def _far(given: dict[int, Far], value: Any) -> Any:
    """A result's tensor there; one that was changed in place is the one that was given."""
    if not isinstance(value, Tensor):
        return value
    same = given.get(id(value))
    if same is None:
        return Far(value)
    if (same.shape, same.stride()) != (value.shape, value.stride()):  # transpose_
        with torch._C._DisableTorchDispatch():
            same.as_strided_(value.shape, value.stride())
    return same


class Numbered(TorchFunctionMode):
    """``cuda`` is ``cuda:0``: which one is meant torch would ask CUDA."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(_numbered, (args, kwargs or {}))
        return func(*args, **kwargs)


def _numbered(value: Any) -> Any:
    return CUDA if isinstance(value, str | torch.device) and str(value) == "cuda" else value


@contextlib.contextmanager
def pretended_cuda() -> Iterator[Pretence]:
    """While it lasts there is CUDA; nothing made there may be used after it."""
    group = torch._C._group_tensors_by_device_and_dtype

    def grouped(*args: Any, **kwargs: Any) -> Any:
        found = group(*args, **kwargs)
        return {(CUDA if d is not None and d.type == "meta" else d, t): v for (d, t), v in found.items()}

    said = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "is_current_stream_capturing": lambda: False,
        "_lazy_init": lambda: None,
        "is_bf16_supported": lambda **_: False,
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda *_: None,
        "max_memory_allocated": lambda *_: 0,
        "get_device_properties": lambda *_: mock.Mock(total_memory=80e9),
    }
    with contextlib.ExitStack() as stack:
        for name, value in said.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(torch.backends.cudnn, "is_acceptable", return_value=False))
        stack.enter_context(mock.patch.object(torch.accelerator, "current_accelerator", return_value=None))
        stack.enter_context(mock.patch.object(torch._C, "_group_tensors_by_device_and_dtype", grouped))
        stack.enter_context(mock.patch.object(torch, "inference_mode", torch.no_grad))
        pretence = stack.enter_context(Pretence())
        stack.enter_context(Numbered())
        yield pretence
