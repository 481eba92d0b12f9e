"""The transformer's step in C: all of it in one call, which leaves Python's lock to other threads."""

from __future__ import annotations

import copy
import ctypes
from ctypes import POINTER, byref, c_float, c_int64, c_void_p
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from makemore.runtime.native import address, structure
from makemore.sampling.decoders.base import Floats, Ints
from makemore.sampling.decoders.transformer import TransformerStepper

if TYPE_CHECKING:
    from makemore.models.transformer import Transformer

SOURCE = Path(__file__).with_name("transformer.c")


_Linear = structure("Linear", weight=c_void_p, bias=c_void_p, n_in=c_int64, n_out=c_int64)
_Model = structure(
    "Model",
    **dict.fromkeys(("layers", "heads", "width", "slots", "modern", "boundary"), c_int64),
    linears=POINTER(_Linear),
    head=_Linear,
    **dict.fromkeys(("embedding", "positions", "turns", "mixers"), c_void_p),
    **dict.fromkeys(("eps", "head_eps"), c_float),
)
_State = structure(
    "State",
    **dict.fromkeys(("rows", "room", "at", "slot"), c_int64),
    **dict.fromkeys(("starts", "keys", "values", "rings"), c_void_p),
)


class Panels:
    """A linear layer's weight as C reads it: (out / panel, in, panel)."""

    def __init__(self, panel: int, weight: Floats, bias: Floats | None = None) -> None:
        self.n_in, self.n_out = weight.shape
        padded = np.pad(weight, ((0, 0), (0, -self.n_out % panel)))
        self.weight = np.ascontiguousarray(padded.reshape(self.n_in, -1, panel).swapaxes(0, 1))
        self.bias = bias

    def described(self) -> ctypes.Structure:
        return _Linear(address(self.weight), address(self.bias), self.n_in, self.n_out)


class CompiledTransformerStepper(TransformerStepper):
    """State and weights are numpy's, in the same layouts; C is told where they lie."""

    twins = False
    cached = 9 << 20  # two threads' share of a processor's last cache; keys and values come from there

    def __init__(self, model: Transformer, code: ctypes.CDLL) -> None:
        """``code``: what ``SOURCE`` compiles to."""
        self.code = code
        self.linear = partial(Panels, c_int64.in_dll(code, "panel").value)
        super().__init__(model)
        linears = [cast(Panels, linear).described() for layer in self.layers for linear in layer]
        self.model = _Model(
            len(self.layers),
            self.heads,
            self.width,
            self.slots,
            self.modern,
            self.boundary_id,
            (_Linear * len(linears))(*linears),
            self.head.described(),
            address(self.embedding),
            address(None if self.modern else self.positions),
            address(self.turns_qk if self.modern else None),
            address(self.mixers),
            self.eps[0],
            self.head_eps[0],
        )

    def _begin(self) -> None:
        super()._begin()
        rows, room = len(self.starts), self.keys.shape[-1]
        arrays = (self.starts, self.keys, self.values, self.rings)
        self.state = _State(rows, room, 0, 0, *map(address, arrays))
        self.work = np.empty(self.code.workspace(byref(self.model), c_int64(room)), np.float32)

    def _move(self, gone: int, keep: int, back: NDArray[np.complex64]) -> None:
        turn = c_void_p(back.ctypes.data)
        self.code.move(byref(self.model), byref(self.state), c_int64(gone), c_int64(keep), turn)

    def step(self, ids_B: Ints) -> Floats:
        ids_B = np.ascontiguousarray(ids_B, np.int64)
        logits_BV = np.empty((len(ids_B), self.head.n_out), np.float32)
        self.state.at, self.state.slot = self.at, self.slot
        arrays = (ids_B, self.work, logits_BV)
        self.code.step(byref(self.model), byref(self.state), *(c_void_p(a.ctypes.data) for a in arrays))
        self._advance()
        return logits_BV


_KEPT: WeakKeyDictionary[Transformer, tuple[list[tuple[int, int]], CompiledTransformerStepper]]
_KEPT = WeakKeyDictionary()


def compiled_stepper(model: Transformer, code: ctypes.CDLL) -> CompiledTransformerStepper:
    """A stepper of its own state; weights are prepared anew only where they have changed since."""
    weights = [(parameter.data_ptr(), parameter._version) for parameter in model.parameters()]
    kept = _KEPT.get(model)
    if kept is None or kept[0] != weights:
        kept = _KEPT[model] = weights, CompiledTransformerStepper(model, code)
    return copy.copy(kept[1])
