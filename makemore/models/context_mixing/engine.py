"""Context mixing over a model's arrays: in C or, without a compiler, in Python."""

from __future__ import annotations

from makemore.models.context_mixing import memory
from makemore.models.context_mixing.engine_base import Engine
from makemore.models.context_mixing.native import LIBRARY, NativeEngine
from makemore.models.context_mixing.plain import PlainEngine


def make_engine(arrays: memory.Arrays, boundary_id: int) -> Engine:
    """The C code's engine or, without a compiler, Python's."""
    code = LIBRARY.load()
    if code is None:
        return PlainEngine(arrays, boundary_id)
    return NativeEngine(arrays, boundary_id, code)
