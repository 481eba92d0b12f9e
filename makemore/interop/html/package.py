"""A block of bytes with a model's arrays, for ``model.js``."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from makemore.interop.html.program import Program, encode_number

MIN_ROUNDED = 1024
"""Matrices with fewer elements keep 32 bits."""
LEVELS = 2**23 - 1
"""A row of a larger matrix is stored as whole numbers up to this, of 24 bits, times a factor: with 16 bits,
greedy texts sometimes differ."""


class Package:
    """Collects arrays into one block of bytes."""

    def __init__(self) -> None:
        self.data = bytearray()

    def array(self, values: np.ndarray) -> dict[str, Any]:
        """Append an array as float32, int32, uint16 or uint8; returns its type, offset in bytes and shape."""
        small = {"uint8": "u1", "uint16": "u2"}
        kind = "f4" if values.dtype.kind == "f" else small.get(values.dtype.name, "i4")
        self.data += bytes(-len(self.data) % 4)
        at = len(self.data)
        self.data += np.ascontiguousarray(values, kind).tobytes()
        return {"type": kind, "at": at, "shape": list(values.shape)}

    def tensor(self, tensor: Tensor) -> dict[str, Any]:
        """Append a tensor, large float matrices rounded to 24 bits per element; returns its description."""
        values = tensor.detach().cpu()
        if values.numel() and bool((values == values.flatten()[0]).all()):
            value, is_float = values.flatten()[0].item(), values.is_floating_point()
            fill = encode_number(value) if is_float else int(value)
            return {"type": "f4" if is_float else "i4", "shape": list(values.shape), "fill": fill}
        if not values.is_floating_point():
            return self.array(values.numpy().astype(np.int64))
        if values.ndim != 2 or values.numel() < MIN_ROUNDED or not bool(values.isfinite().all()):
            return self.array(values.float().numpy())
        return self.matrix(values.float().numpy())

    def matrix(self, rows: np.ndarray) -> dict[str, Any]:
        """Append a float32 matrix, rounded to 24 bits per element; returns its description."""
        factors = np.maximum(np.abs(rows).max(1), 1e-30).astype(np.float32) / LEVELS
        where = self.array(factors)
        at = len(self.data)
        whole = np.rint(rows / factors[:, None].astype(np.float64)).astype("<i4")
        self.data += whole[..., None].view(np.uint8)[..., :3].tobytes()
        return {"type": "i3", "at": at, "shape": list(rows.shape), "factors": where}

    def program(self, program: Program) -> dict[str, Any]:
        """Append a program's constants; returns its description."""
        return {
            "constants": [self.tensor(constant) for constant in program.constants],
            "inputs": program.n_inputs,
            "operations": program.operations,
            "outputs": program.outputs,
        }
