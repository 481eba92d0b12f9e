"""Context mixing, one token per row: sampling walks down the code tree once."""

from __future__ import annotations

import numpy as np

from makemore.models.context_mixing import ContextMixing
from makemore.sampling.decoders.base import FastDecoder, fast_decoder, to_array
from makemore.types import Floats, Floats32, Ints, State


class ContextMixingDecoder(FastDecoder):
    """Keeps each row's position."""

    duplicates_single_row = False
    supports_sampling = True

    def __init__(self, model: ContextMixing) -> None:
        self.engine = model.engine

    def load(self, state: State) -> None:
        self.positions_BP = to_array(state[0]).copy()

    def step(self, ids_B: Ints) -> Floats32:
        return self.engine.distributions(np.ascontiguousarray(ids_B[:, None]), self.positions_BP)[:, 0]

    def sample(self, uniform_B: Floats) -> Ints:
        return self.engine.sample(self.positions_BP, np.ascontiguousarray(uniform_B))

    def select_rows(self, rows_K: Ints) -> None:
        self.positions_BP = self.positions_BP[rows_K]


@fast_decoder.register(ContextMixing)
def _decoder(model: ContextMixing) -> FastDecoder:
    return ContextMixingDecoder(model)
