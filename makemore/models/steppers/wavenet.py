"""WaveNet, one token a row: a ring of inputs for each level (Le Paine et al. 2016, "Fast Wavenet
Generation Algorithm")."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
from torch import nn

from makemore.models.steppers import Floats, Ints, Stepper, array, matrix, sigmoid
from makemore.models.steppers.windows import folded_norm
from makemore.types import State

if TYPE_CHECKING:
    from makemore.models.wavenet import Fusion, GatedBlock, WaveNet


class WaveNetStepper(Stepper):
    """Each level joins its newest input with one ``2**level`` steps older."""

    def __init__(self, model: WaveNet) -> None:
        self.embedding = array(model.embedding.weight)
        self.gated = model.mix is not None
        levels = [_gated(level) if self.gated else _fusion(level) for level in model.levels]
        self.levels: list[list[tuple[Floats, Floats]]] = levels
        self.mix = None if model.mix is None else _linear(model.mix)
        self.head = _linear(model.head)

    def load(self, state: State) -> None:
        # By position first: a ring's slot is then in one piece.
        self.rings = [array(queue).swapaxes(0, 1).copy() for queue in state]
        self.turn = 0

    def step(self, ids_B: Ints) -> Floats:
        x = self.embedding.take(ids_B, 0)
        skips: list[Floats] = []
        for ring, level in zip(self.rings, self.levels, strict=True):
            slot = self.turn % len(ring)
            pair = np.concatenate((ring[slot], x), axis=1)
            ring[slot] = x
            z = _apply(pair, level[0])
            if not self.gated:
                x = np.tanh(z, out=z)
                continue
            width = z.shape[1] // 2
            z = np.tanh(z[:, :width]) * sigmoid(z[:, width:])
            skips.append(_apply(z, level[1]))
            if len(level) > 2:
                x = x + _apply(z, level[2])
        self.turn += 1
        if self.mix is not None:
            x = np.maximum(_apply(np.maximum(sum(skips), np.float32(0)), self.mix), np.float32(0))
        return _apply(x, self.head)

    def keep(self, rows_K: Ints) -> None:
        self.rings = [ring[:, rows_K] for ring in self.rings]


def _linear(layer: nn.Linear) -> tuple[Floats, Floats]:
    return matrix(layer.weight), array(layer.bias)


def _fusion(level: nn.Module) -> list[tuple[Floats, Floats]]:
    level = cast("Fusion", level)
    return [folded_norm(matrix(level.linear.weight), level.norm)]


def _gated(level: nn.Module) -> list[tuple[Floats, Floats]]:
    """Filter and gate, skip, and the residual layer where there is one."""
    level = cast("GatedBlock", level)
    layers = [_linear(level.filter_gate), _linear(level.skip)]
    return [*layers, _linear(level.residual)] if isinstance(level.residual, nn.Linear) else layers


def _apply(x: Floats, layer: tuple[Floats, Floats]) -> Floats:
    y = np.dot(x, layer[0])
    y += layer[1]
    return y
