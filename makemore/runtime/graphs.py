"""CUDA graphs: record the kernels of a function once, then launch them all at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from makemore.runtime.device import is_out_of_memory, to_device

CALLS_BEFORE_RECORDING = 3
"""Number of ordinary calls before a recording; they prepare compiled code and optimizer states."""
MAX_RECORDINGS = 4
"""Maximum number of recorded shapes; calls with other shapes run as usual."""

Shapes = tuple[torch.Size, ...]


class RecordingError(Exception):
    """A function couldn't be recorded, and didn't complete."""


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: tuple[Tensor, ...]

    def replay(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for recorded, given in zip(self.inputs, inputs, strict=True):
            recorded.copy_(given.pin_memory() if given.device.type == "cpu" else given, non_blocking=True)
        self.graph.replay()
        return self.outputs


class GraphedFunction:
    """Calls a function of tensors; from the fourth call with the same shapes, as a CUDA graph.

    The function may change other tensors in place, but must not read values back or depend on changing Python
    values. A graph's outputs are overwritten by its next call.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], device: torch.device) -> None:
        self.function, self.device = function, device
        self._stream = torch.cuda.Stream(device)
        self._pool: Any = None
        self._calls: Counter[Shapes] = Counter()
        self._recordings: dict[Shapes, _Recording] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Call with inputs from the CPU or the device. Raises RecordingError if recording fails."""
        shapes = tuple(tensor.shape for tensor in inputs)
        recording = self._recordings.get(shapes)
        self._calls[shapes] += 1
        is_due = self._calls[shapes] > CALLS_BEFORE_RECORDING and len(self._recordings) < MAX_RECORDINGS
        if recording is None and is_due:
            recording = self._recordings[shapes] = self._record(inputs)
        return self._call(inputs) if recording is None else recording.replay(inputs)

    def _call(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # On the stream of the recordings, where autograd then expects the parameters' gradients, too.
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            outputs = self.function(*(to_device(tensor, self.device) for tensor in inputs))
        current.wait_stream(self._stream)
        return outputs

    def _record(self, inputs: tuple[Tensor, ...]) -> _Recording:
        static = [tensor.to(self.device, copy=True) for tensor in inputs]
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                outputs = self.function(*static)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise RecordingError(next(iter(str(error).splitlines()), type(error).__name__)) from error
        self._pool = graph.pool()
        return _Recording(graph, static, outputs)
