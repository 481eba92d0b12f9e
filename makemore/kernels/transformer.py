"""The modern transformer on a CPU: logits, or forward and backward in one C call."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from ctypes import POINTER, byref, c_double, c_float, c_int64, c_uint32, c_void_p
from pathlib import Path
from typing import TypeVar, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from makemore.kernels.base import PANEL, find_kernel
from makemore.models.transformer import Transformer
from makemore.runtime.native import CLibrary, parallel_map, structure
from makemore.types import IMPOSSIBLE_LOGIT, DocumentEnds

HEAD = 8
"""The head size must be a multiple of this, and the width of PANEL, for vectorised C."""
MAX_VOCABULARY = 4096
"""Limited because C holds the logits of a whole row in memory."""
PARTS_PER_THREAD = 2
"""Parts of a batch, each with its own gradients; with several, a faster core computes more of them."""
MAX_PARAMETERS = 1 << 24
"""Limited because each thread holds its own gradients, and large matrix products gain nothing from C."""

MAX_SCORE = 60.0
"""Limited because C's softmax doesn't subtract the maximum."""

T = TypeVar("T")
DOCUMENT_ENDS = get_args(DocumentEnds)
"""In the order of C's enum."""

_Model = structure(
    "Model",
    **dict.fromkeys(
        ("layers", "heads", "width", "vocab", "taps", "gated", "boundary", "document_ends"), c_int64
    ),
    **dict.fromkeys(("dropout", "impossible", "score_scale"), c_float),
    cos=c_void_p,
    sin=c_void_p,
    weights=POINTER(c_void_p),
    packed=c_void_p,
)
_Batch = structure(
    "Batch",
    **dict.fromkeys(("length", "first", "last"), c_int64),
    **dict.fromkeys(("inputs", "targets", "starts"), c_void_p),
    seed=c_uint32,
)
LIBRARY = CLibrary(
    Path(__file__).with_name("transformer.c"),
    {
        "n_gradients": (c_int64, POINTER(_Model)),
        "packed_size": (c_int64, POINTER(_Model)),
        "workspace": (c_int64, POINTER(_Model), c_int64),
        "pack_weights": (None, POINTER(_Model), c_void_p),
        "compute_logits": (None, POINTER(_Model), POINTER(_Batch), c_void_p, c_void_p),
        "loss_and_grads": (c_double, POINTER(_Model), POINTER(_Batch), c_float, c_void_p, c_void_p),
    },
    {"model": _Model, "batch": _Batch},
)


@find_kernel.register(Transformer)
def _kernel(model: Transformer, precision: torch.dtype) -> TransformerKernel | None:
    """The kernel, or None if the model or machine is unsupported."""
    config = model.config
    fits = config.n_embd % PANEL == 0 and config.n_embd // config.n_head % HEAD == 0
    fits = fits and model.vocab_size <= MAX_VOCABULARY and model.n_parameters() <= MAX_PARAMETERS
    fits = fits and config.score_scale * math.sqrt(config.n_embd // config.n_head) <= MAX_SCORE
    if config.style != "modern" or model.device.type != "cpu" or not fits:
        return None
    code = LIBRARY.load(*(["-DFLOAT32"] if precision == torch.float32 else []))
    return None if code is None else TransformerKernel(model, code)


class TransformerKernel:
    """Divides the rows of a batch among as many threads as torch uses."""

    def __init__(self, model: Transformer, code: ctypes.CDLL) -> None:
        """``code``: the loaded ``LIBRARY``."""
        self.model, self.code = model, code
        config = model.config
        taps = config.conv if config.has_conv else 0
        sizes = (config.n_layer, config.n_head, config.n_embd, model.vocab_size, taps, config.has_gate)
        ends = (model.boundary_id, DOCUMENT_ENDS.index(model.document_ends))
        # C pads rows to whole panels.
        self.rope = [F.pad(t, (0, 0, 0, -len(t) % PANEL)) for t in (model.cos, model.sin)]
        rope = (t.data_ptr() for t in self.rope)
        self.as_struct = _Model(*sizes, *ends, 0.0, IMPOSSIBLE_LOGIT, config.score_scale, *rope)
        self.parameters = {name: model.get_parameter(name) for name in self._names()}
        """In C's order."""
        self.packed = torch.empty(code.packed_size(byref(self.as_struct)), dtype=torch.uint8)
        self.as_struct.packed = self.packed.data_ptr()
        self.memory = torch.empty(0, 0, dtype=torch.uint8)
        self.grads_PN = torch.empty(0, 0)

    def logits(self, inputs_BT: Tensor) -> Tensor:
        """The logits of ``forward`` without a state, (B, T, V) float32."""
        logits_BTV = torch.empty(*inputs_BT.shape, self.model.vocab_size)

        def run(batch: ctypes.Structure, memory: int, _: int) -> None:
            self.code.compute_logits(byref(self.as_struct), byref(batch), memory, logits_BTV.data_ptr())

        self._run(run, inputs_BT, inputs_BT)
        return logits_BTV

    def loss_and_grads(self, inputs_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean nats over valid targets, () float32, and its gradient by parameter name."""
        count = max(int((targets_BT >= 0).sum()), 1)
        parts = self._parts(inputs_BT)
        if len(self.grads_PN) < parts:  # reused: allocating it at each step is slow
            self.grads_PN = torch.empty(parts, self.code.n_gradients(byref(self.as_struct)))
        nats = self._nats(inputs_BT, targets_BT, 1 / count, self.grads_PN)
        grads_N = self.grads_PN[0].clone()
        for part_N in self.grads_PN[1:parts]:
            grads_N += part_N
        return torch.tensor(nats / count, dtype=torch.float32), self._named(grads_N)

    def nats(self, inputs_BT: Tensor, targets_BT: Tensor) -> float:
        """Nats summed over valid targets."""
        return self._nats(inputs_BT, targets_BT, 0.0, None)

    def _parts(self, inputs_BT: Tensor) -> int:
        return min(PARTS_PER_THREAD * torch.get_num_threads(), len(inputs_BT))

    def _nats(
        self, inputs_BT: Tensor, targets_BT: Tensor, loss_scale: float, grads_PN: Tensor | None
    ) -> float:
        """Summed nats; row p of ``grads_PN`` receives the gradients of part p, times ``loss_scale``."""

        def run(batch: ctypes.Structure, memory: int, part: int) -> float:
            pointer = None if grads_PN is None else grads_PN[part].data_ptr()
            return self.code.loss_and_grads(byref(self.as_struct), byref(batch), loss_scale, memory, pointer)

        return sum(self._run(run, inputs_BT, targets_BT))

    def _run(
        self, call: Callable[[ctypes.Structure, int, int], T], inputs_BT: Tensor, targets_BT: Tensor
    ) -> list[T]:
        """Results of ``call(batch, memory, part)`` for each part of the rows, in parallel."""
        rows, length = inputs_BT.shape
        arrays_BT = [t.contiguous() for t in (inputs_BT, targets_BT, self._starts(inputs_BT))]
        weights = [parameter.data_ptr() for parameter in self.parameters.values()]
        self.as_struct.weights = (c_void_p * len(weights))(*weights)
        dropout = self.model.config.dropout if self.model.training else 0.0
        self.as_struct.dropout, seed = dropout, int(torch.randint(2**32, ())) if dropout else 0
        threads, parts = torch.get_num_threads(), self._parts(inputs_BT)
        self._allocate(threads, length)

        def run(part: int, thread: int) -> T:
            first, last = (rows * n // parts for n in (part, part + 1))
            batch = _Batch(length, first, last, *(t.data_ptr() for t in arrays_BT), seed)
            return call(batch, self.memory[thread].data_ptr(), part)

        self.code.pack_weights(byref(self.as_struct), self.memory.data_ptr())
        return parallel_map(run, parts, threads)

    def _starts(self, inputs_BT: Tensor) -> Tensor:
        """Position in the row at which each token's document starts, (B, T) int64."""
        if self.model.one_document_per_row:
            return torch.zeros_like(inputs_BT)
        position_T = torch.arange(inputs_BT.shape[1])
        return torch.where(inputs_BT == self.model.boundary_id, position_T, 0).cummax(dim=1).values

    def _allocate(self, threads: int, length: int) -> None:
        needed = max(self.code.workspace(byref(self.as_struct), length), self.packed.numel())
        if self.memory.shape[0] < threads or self.memory.shape[1] < needed:
            self.memory = torch.empty(threads, needed, dtype=torch.uint8)

    def _named(self, grads_N: Tensor) -> dict[str, Tensor]:
        """Split into gradients by name; C pads the head's rows to whole panels."""
        named, at = {}, 0
        panel = c_int64.in_dll(self.code, "panel").value
        for name, parameter in self.parameters.items():
            shape = parameter.shape
            size = shape.numel()
            named[name] = grads_N[at : at + size].view(shape)
            at += -(-shape[0] // panel) * panel * shape[1] if name == "head.weight" else size
        return named

    def _names(self) -> list[str]:
        """Parameter names in C's order."""
        config = self.model.config
        parts = ["attention.qkv", "attention.out", "feed_forward.up", "feed_forward.down"]
        parts += ["convs.0", "convs.1"] if config.has_conv else []
        parts = [f"{part}.weight" for part in parts] + (["attention.gate"] if config.has_gate else [])
        layers = [f"blocks.{i}.{part}" for i in range(config.n_layer) for part in parts]
        return ["embedding.weight", "head.weight", *layers]
