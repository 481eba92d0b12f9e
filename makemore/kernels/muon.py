"""Muon's step on a CPU, in C."""

from __future__ import annotations

import math
from collections.abc import Sequence
from ctypes import POINTER, byref, c_float, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from makemore.kernels.base import PANEL
from makemore.runtime.native import CLibrary, parallel_map, structure

_Muon = structure(
    "Muon",
    **dict.fromkeys(("rows", "columns", "iterations"), c_int64),
    **dict.fromkeys(("a", "b", "c", "momentum", "decay", "rate"), c_float),
)
LIBRARY = CLibrary(
    Path(__file__).with_name("muon.c"),
    {
        "workspace": (c_int64, POINTER(_Muon)),
        "muon_step": (None, POINTER(_Muon), *[c_void_p] * 4),
    },
    {"muon": _Muon},
)


@dataclass(frozen=True)
class Matrices:
    """Matrices of one shape, and how to update them."""

    weights: Sequence[Tensor]
    """Parameters on the CPU, (parts * rows, columns) float32; gradients and velocities are alike."""
    gradients: Sequence[Tensor]
    velocities: Sequence[Tensor]
    parts: int
    """Number of matrices stacked in each parameter."""
    momentum: float
    decay: float
    """Factor of the weights before the update."""
    rate: float
    """Factor of the orthogonalised gradient, which is subtracted."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.weights[0].shape[0] // self.parts, self.weights[0].shape[1]

    def is_supported(self) -> bool:
        tensors = [*self.weights, *self.gradients, *self.velocities]
        is_plain = all(t.is_contiguous() and t.dtype == torch.float32 for t in tensors)
        return is_plain and not any(side % PANEL for side in self.shape)

    def pointers(self) -> list[list[int]]:
        """The addresses of each matrix's weights, gradient and velocity."""
        size = 4 * math.prod(self.shape)
        return [
            [tensor.data_ptr() + size * part for tensor in group]
            for group in zip(self.weights, self.gradients, self.velocities, strict=True)
            for part in range(self.parts)
        ]


def muon_step(groups: Sequence[Matrices], coefficients: Sequence[float], iterations: int) -> bool:
    """A step of Muon (Jordan et al. 2024), in place, with products in bfloat16 where the processor has it.

    Args:
        groups: The matrices, by shape.
        coefficients: The three of an iteration.
        iterations: Number of iterations.

    Returns:
        False, with nothing changed, if a shape is unsupported or there is no compiler.
    """
    if not all(group.is_supported() for group in groups) or (code := LIBRARY.load()) is None:
        return False
    calls = []
    for group in groups:
        settings = _Muon(*group.shape, iterations, *coefficients, group.momentum, group.decay, group.rate)
        calls += [(byref(settings), *pointers) for pointers in group.pointers()]
    threads, size = torch.get_num_threads(), max(code.workspace(call[0]) for call in calls)
    memory = torch.empty(threads, size, dtype=torch.uint8)

    def run(i: int, thread: int) -> None:
        code.muon_step(*calls[i], memory[thread].data_ptr())

    parallel_map(run, len(calls), threads)
    return True
