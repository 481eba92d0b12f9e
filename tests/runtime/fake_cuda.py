"""A fake CUDA device: tensors report it as their device and are computed on the CPU.

Operations on tensors of two devices fail, as on CUDA; operations that would synchronise the CPU with the GPU
are recorded. Kernels, streams and memory need a real device.
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
SYNCS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique2, aten.equal}
"""Operations whose result, or its shape, is needed on the CPU."""
MIXED = {aten.copy_, aten._to_copy, aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
"""Operations that accept tensors of two devices."""


class FakeCudaTensor(Tensor):
    """A tensor on the fake device: a "meta" tensor for torch, with its data in ``on_cpu``."""

    on_cpu: Tensor
    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, on_cpu: Tensor) -> FakeCudaTensor:
        shell = torch.empty_strided(on_cpu.shape, on_cpu.stride(), dtype=on_cpu.dtype, device="meta")
        fake = torch.Tensor._make_subclass(cls, shell, False)
        fake.on_cpu = on_cpu
        return fake

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of fake_cuda()")


class FakeCuda(TorchDispatchMode):
    """Computes on the CPU; ``syncs`` names the operations that synchronised."""

    def __init__(self) -> None:
        super().__init__()
        self.syncs: list[str] = []
        self.recording: FakeGraph | None = None
        self.n_replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten.is_pinned.default:
            return True
        if func in (aten._pin_memory.default, aten.pin_memory.default):
            return args[0]
        kwargs = dict(kwargs or {})
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        fakes = [t for t in tensors if isinstance(t, FakeCudaTensor)]
        name, device = func.overloadpacket, kwargs.get("device")
        if fakes and name not in MIXED and any(t.ndim for t in tensors if not isinstance(t, FakeCudaTensor)):
            raise RuntimeError(f"{name}: tensors of two devices")
        to_cuda = bool(fakes) if device is None else device.type != "cpu"
        if name is aten.copy_:
            to_cuda = isinstance(args[0], FakeCudaTensor)
        if fakes and (name in SYNCS or not to_cuda):
            if self.recording is not None:
                raise RuntimeError(f"{name} is not permitted when the stream is capturing")
            self.syncs.append(str(name))
        if device is not None:
            kwargs["device"] = CPU
        on_cpu = tree_map(_to_cpu, args), tree_map(_to_cpu, kwargs)
        if self.recording is not None:
            out = self.recording.add(func, *on_cpu)
        else:
            out = func(*on_cpu[0], **on_cpu[1])
        inputs = {id(t.on_cpu): t for t in fakes}
        return tree_map(functools.partial(_to_fake, inputs), out) if to_cuda else out


class FakeGraph:
    """Records the operations of a block, undoing what they changed, and repeats them on the same memory."""

    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.undo: list[tuple[Tensor, Tensor]] = []

    def pool(self) -> None:
        return None

    def add(self, func: Any, args: Any, kwargs: Any) -> Any:
        if torch.Tag.inplace_view in func.tags:  # changes no memory
            return func(*args, **kwargs)
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.undo += [(t, t.clone()) for t in tree_leaves(value) if isinstance(t, Tensor)]
        recorded = tree_map(_alias, (args, kwargs))  # their shapes may be changed in place later
        out = func(*args, **kwargs)
        self.operations.append((func, *recorded, tree_map(_alias, out)))
        return out

    @contextlib.contextmanager
    def record(self, fake: FakeCuda) -> Iterator[None]:
        random = torch.get_rng_state()
        fake.recording = self
        try:
            yield
        finally:
            fake.recording = None
            torch.set_rng_state(random)
            for tensor, before in reversed(self.undo):
                tensor.copy_(before)

    def replay(self, fake: FakeCuda) -> None:
        fake.n_replays += 1
        for func, args, kwargs, out in self.operations:
            pairs = zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True)
            for recorded, new in pairs:
                if isinstance(recorded, Tensor) and recorded.data_ptr() != new.data_ptr():
                    recorded.copy_(new)


def _alias(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _to_cpu(value: Any) -> Any:
    return value.on_cpu if isinstance(value, FakeCudaTensor) else value


def _to_fake(inputs: dict[int, FakeCudaTensor], value: Any) -> Any:
    """The fake tensor of a result; the input itself where it was modified in place."""
    if not isinstance(value, Tensor):
        return value
    original = inputs.get(id(value))
    if original is None:
        return FakeCudaTensor(value)
    if (original.shape, original.stride()) != (value.shape, value.stride()):  # transpose_
        with torch._C._DisableTorchDispatch():
            original.as_strided_(value.shape, value.stride())
    return original


class IndexedDevice(TorchFunctionMode):
    """Replaces device ``cuda`` by ``cuda:0``; torch would query CUDA for the current device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(_with_index, (args, kwargs or {}))
        return func(*args, **kwargs)


def _with_index(value: Any) -> Any:
    return CUDA if isinstance(value, str | torch.device) and str(value) == "cuda" else value


@contextlib.contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """Provide the fake device for the block; tensors made in it must not be used afterwards."""
    group = torch._C._group_tensors_by_device_and_dtype

    def grouped(*args: Any, **kwargs: Any) -> Any:
        groups = group(*args, **kwargs)
        return {(CUDA if d is not None and d.type == "meta" else d, t): v for (d, t), v in groups.items()}

    patches = {
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
        for name, value in patches.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(torch.backends.cudnn, "is_acceptable", return_value=False))
        stack.enter_context(mock.patch.object(torch.accelerator, "current_accelerator", return_value=None))
        stack.enter_context(mock.patch.object(torch._C, "_group_tensors_by_device_and_dtype", grouped))
        stack.enter_context(mock.patch.object(torch, "inference_mode", torch.no_grad))
        fake = stack.enter_context(FakeCuda())
        stack.enter_context(IndexedDevice())
        graphs = {
            "Stream": lambda *_: mock.Mock(),
            "current_stream": lambda *_: mock.Mock(),
            "stream": lambda *_: contextlib.nullcontext(),
            "CUDAGraph": lambda: mock.Mock(
                wraps=(graph := FakeGraph()), graph=graph, replay=lambda: graph.replay(fake)
            ),
            "graph": lambda graph, **_: graph.graph.record(fake),
        }
        for name, value in graphs.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        yield fake
