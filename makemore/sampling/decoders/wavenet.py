"""WaveNet, one token per row, with a ring buffer of inputs per level (Le Paine et al. 2016, "Fast Wavenet
Generation Algorithm")."""

from __future__ import annotations

from typing import cast

import numpy as np
from torch import nn

from makemore.models.wavenet import Fusion, GatedBlock, WaveNet
from makemore.sampling.decoders.base import FastDecoder, Linear, fast_decoder, sigmoid, to_array
from makemore.sampling.decoders.windows import fold_batchnorm
from makemore.types import Floats32, Ints, State


@fast_decoder.register(WaveNet)
class WaveNetDecoder(FastDecoder):
    """Each level combines its newest input with the input from ``2**level`` steps earlier."""

    def __init__(self, model: WaveNet) -> None:
        self.embedding = to_array(model.embedding.weight)
        self.gated = model.mix is not None
        self.levels = [_gated(level) if self.gated else _fusion(level) for level in model.levels]
        self.mix = None if model.mix is None else Linear.from_layer(model.mix)
        self.head = Linear.from_layer(model.head)

    def load(self, state: State) -> None:
        # Position first, so a ring's slot is contiguous.
        self.rings = [to_array(queue).swapaxes(0, 1).copy() for queue in state]
        self.step_count = 0

    def step(self, ids_B: Ints) -> Floats32:
        x = self.embedding.take(ids_B, 0)
        skips: list[Floats32] = []
        for ring, level in zip(self.rings, self.levels, strict=True):
            slot = self.step_count % len(ring)
            pair = np.concatenate((ring[slot], x), axis=1)
            ring[slot] = x
            z = level[0](pair)
            if not self.gated:
                x = np.tanh(z, out=z)
                continue
            width = z.shape[1] // 2
            z = np.tanh(z[:, :width]) * sigmoid(z[:, width:])
            skips.append(level[1](z))
            if len(level) > 2:
                x = x + level[2](z)
        self.step_count += 1
        if self.mix is not None:
            x = np.maximum(self.mix(np.maximum(sum(skips), np.float32(0))), np.float32(0))
        return self.head(x)

    def select_rows(self, rows_K: Ints) -> None:
        self.rings = [ring[:, rows_K] for ring in self.rings]


def _fusion(level: nn.Module) -> list[Linear]:
    level = cast("Fusion", level)
    return [fold_batchnorm(level.linear, level.norm)]


def _gated(level: nn.Module) -> list[Linear]:
    """Filter and gate, skip and, except in the last level, residual layers."""
    level = cast("GatedBlock", level)
    layers = [level.filter_gate, level.skip, level.residual]
    return [Linear.from_layer(layer) for layer in layers if isinstance(layer, nn.Linear)]
