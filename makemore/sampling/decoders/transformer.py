"""The transformer's decoding step in C: a single call, which releases the GIL for other threads."""

from __future__ import annotations

import copy
import ctypes
from ctypes import POINTER, byref, c_float, c_int64, c_void_p
from pathlib import Path
from typing import cast
from weakref import WeakKeyDictionary

import numpy as np
from torch import nn

from makemore.models.layers.attention import rms_norm
from makemore.models.layers.convolution import ShortConv
from makemore.models.transformer import Block, Transformer
from makemore.runtime.native import CLibrary, address, structure
from makemore.sampling.decoders.base import FastDecoder, fast_decoder, to_array, to_matrix
from makemore.types import Floats32, Ints, State

Linear = structure("Linear", weight=c_void_p, bias=c_void_p, n_in=c_int64, n_out=c_int64)
Model = structure(
    "Model",
    **dict.fromkeys(("layers", "heads", "width", "taps", "modern", "boundary"), c_int64),
    score_scale=c_float,
    linears=POINTER(Linear),
    head=Linear,
    **dict.fromkeys(("embedding", "positions", "cos", "sin", "convs", "gates"), c_void_p),
)
Cache = structure(
    "Cache",
    **dict.fromkeys(("rows", "capacity", "position", "slot"), c_int64),
    **dict.fromkeys(("starts", "keys", "values", "rings"), c_void_p),
)
LIBRARY = CLibrary(
    Path(__file__).with_name("transformer.c"),
    {
        "workspace": (c_int64, POINTER(Model), c_int64),
        "step": (None, POINTER(Model), POINTER(Cache), c_void_p, c_void_p, c_void_p),
        "shift_cache": (None, POINTER(Model), POINTER(Cache), c_int64, c_int64),
    },
    {"linear": Linear, "model": Model, "cache": Cache},
)


class TransformerDecoder(FastDecoder):
    """Keys (L, B, H, D, T), values (L, B, H, T, D), and rings (2 L, K, B, C) of the convolutions' inputs."""

    duplicates_single_row = False
    cache_bytes = 9 << 20  # keys and values are read from the last-level cache, which two threads share

    def __init__(self, model: Transformer, code: ctypes.CDLL) -> None:
        """``code``: the loaded ``LIBRARY``."""
        config = model.config
        self.code, self.panel = code, c_int64.in_dll(code, "panel").value
        self.layers, self.heads, self.modern = config.n_layer, config.n_head, model.positions is None
        self.taps = config.conv if config.has_conv else 1
        self.arrays: list[Floats32] = []
        """Keeps the arrays that C points to alive."""
        blocks = [cast(Block, block) for block in model.blocks]
        linears = [linear for block in blocks for linear in self._linears(block)]
        convs = [to_array(cast(ShortConv, conv).weight) for block in blocks for conv in block.convs]
        gates = [to_array(block.attention.gate) for block in blocks if block.attention.gate is not None]
        embedding = rms_norm(model.embedding.weight) if self.modern else model.embedding.weight
        tables = [embedding, None if model.positions is None else model.positions.weight]
        tables += [model.cos, model.sin] if self.modern else [None, None]
        self.head_size = model.vocab_size
        self.model = Model(
            config.n_layer,
            config.n_head,
            config.n_embd,
            self.taps,
            self.modern,
            model.boundary_id,
            config.score_scale,
            (Linear * len(linears))(*linears),
            self._linear(model.norm, model.head),
            *(None if table is None else self._pointer(to_array(table)) for table in tables),
            self._pointer(np.stack(convs)) if convs else None,
            self._pointer(np.stack(gates)) if gates else None,
        )

    def _pointer(self, values: Floats32) -> int | None:
        self.arrays.append(values)
        return address(values)

    def _linears(self, block: Block) -> list[ctypes.Structure]:
        feed_forward = block.feed_forward
        pairs = [(block.norm1, block.attention.qkv), (None, block.attention.out)]
        pairs += [(block.norm2, feed_forward.up), (None, feed_forward.down)]
        return [self._linear(norm, layer) for norm, layer in pairs]

    def _linear(self, norm: nn.Module | None, layer: nn.Linear) -> ctypes.Structure:
        """A layer as C reads it, (out / panel, in, panel), including the preceding norm's gain and bias."""
        weight = to_matrix(layer.weight).copy()
        bias = None if layer.bias is None else to_array(layer.bias)
        if isinstance(norm, nn.LayerNorm):
            shift = np.dot(to_array(norm.bias), weight)
            bias = shift if bias is None else bias + shift
            weight *= to_array(norm.weight)[:, None]
        n_in, n_out = weight.shape
        padded = np.pad(weight, ((0, 0), (0, -n_out % self.panel))).reshape(n_in, -1, self.panel)
        packed = np.ascontiguousarray(padded.swapaxes(0, 1))
        return Linear(self._pointer(packed), None if bias is None else self._pointer(bias), n_in, n_out)

    def load(self, state: State) -> None:
        self.position = int(state[0][0])
        self.starts = to_array(state[1]).copy()
        per_layer = (len(state) - 2) // self.layers
        keys, values, *tails = (
            [to_array(part) for part in state[2 + i :: per_layer]] for i in range(per_layer)
        )
        self.keys = np.ascontiguousarray(np.stack(keys).swapaxes(3, 4))
        self.values = np.stack(values)
        inputs = [tail.swapaxes(0, 1) for layer in zip(*tails, strict=True) for tail in layer]
        # Oldest input first, then a slot for the newest.
        self.rings = np.pad(np.stack(inputs), ((0, 0), (0, 1), (0, 0), (0, 0))) if inputs else None
        self.slot = self.taps - 1
        self._begin()

    def step(self, ids_B: Ints) -> Floats32:
        ids_B = np.ascontiguousarray(ids_B, np.int64)
        logits_BV = np.empty((len(ids_B), self.head_size), np.float32)
        self.cache.position, self.cache.slot = self.position, self.slot
        buffers = (address(values) for values in (ids_B, self.work, logits_BV))
        self.code.step(byref(self.model), byref(self.cache), *buffers)
        self.position += 1
        self.slot = (self.slot + 1) % self.taps
        return logits_BV

    def _begin(self) -> None:
        """Zero the convolution inputs before each row's document, and point C to the arrays."""
        if self.rings is not None:
            age = (self.slot - 1 - np.arange(self.taps)) % self.taps
            self.rings[:, age[:, None] >= self.position - self.starts] = 0
        rows, capacity = len(self.starts), self.keys.shape[-1]
        arrays = (self.starts, self.keys, self.values, self.rings)
        self.cache = Cache(rows, capacity, 0, 0, *map(address, arrays))
        self.work = np.empty(self.code.workspace(byref(self.model), capacity), np.float32)

    def select_rows(self, rows_K: Ints) -> None:
        if self.rings is not None:
            self.rings = self.rings.take(rows_K, 2)
        self.starts = self.starts[rows_K]
        layers, _, heads, capacity, size = self.values.shape
        keys, values, used = self.keys, self.values, self.position
        # Copy only the part in use: for names it is small.
        self.keys = np.empty((layers, len(rows_K), heads, size, capacity), np.float32)
        self.values = np.empty((layers, len(rows_K), heads, capacity, size), np.float32)
        self.keys[..., :used] = keys[..., :used][:, rows_K]
        self.values[..., :used, :] = values[..., :used, :][:, rows_K]
        self._begin()

    def drop_oldest(self, n_keep: int) -> bool:
        if not self.modern:
            return False
        dropped = self.position - n_keep
        if n_keep:
            self.code.shift_cache(byref(self.model), byref(self.cache), dropped, n_keep)
        self.position = n_keep
        self.starts = np.maximum(self.starts - dropped, 0)
        self._begin()
        return True


_prepared: WeakKeyDictionary[Transformer, tuple[list[tuple[int, int]], TransformerDecoder]]
_prepared = WeakKeyDictionary()


@fast_decoder.register(Transformer)
def _decoder(model: Transformer) -> TransformerDecoder | None:
    """A decoder with a state of its own; weights are prepared again only after they have changed."""
    code = LIBRARY.load("-DFLOAT32")
    if code is None:
        return None
    versions = [(parameter.data_ptr(), parameter._version) for parameter in model.parameters()]
    prepared = _prepared.get(model)
    if prepared is None or prepared[0] != versions:
        prepared = _prepared[model] = versions, TransformerDecoder(model, code)
    return copy.copy(prepared[1])
