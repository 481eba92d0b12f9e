"""The recurrent networks, one token per row."""

from __future__ import annotations

import numpy as np
import torch

from makemore.models.rnn import Recurrent
from makemore.sampling.decoders.base import (
    FastDecoder,
    Linear,
    fast_decoder,
    sigmoid,
    to_array,
    to_matrix,
)
from makemore.types import Floats32, Ints, State

Weights = tuple[Floats32, Floats32, Floats32, Floats32]
"""A layer's input weight (in, gates) and bias, and hidden weight (hidden, gates) and bias."""


class RecurrentDecoder(FastDecoder):
    """Steps layer by layer; ``_cell`` is the only difference between the three networks."""

    def __init__(self, model: Recurrent) -> None:
        self.size = model.config.n_hidden
        self.embedding = to_array(model.embedding.weight)
        self.head = Linear.from_layer(model.head)
        self.layers = [self._prepare(_weights(model, i)) for i in range(model.config.n_layer)]

    def _prepare(self, weights: Weights) -> tuple[Linear, Linear]:
        """Linear maps of the input and of the hidden vector."""
        w, b, u, c = weights
        return Linear(w, b + c), Linear(u)

    def load(self, state: State) -> None:
        # A list of arrays by layer, which ``_cell`` replaces.
        self.parts = [[to_array(part[:, i]).copy() for i in range(len(self.layers))] for part in state]

    def step(self, ids_B: Ints) -> Floats32:
        x = self.embedding.take(ids_B, 0)
        for i in range(len(self.layers)):
            x = self._cell(i, x)
        return self.head(x)

    def _cell(self, i: int, x: Floats32) -> Floats32:
        """Hidden vectors (B, H) of layer ``i`` after input ``x``."""
        raise NotImplementedError

    def select_rows(self, rows_K: Ints) -> None:
        self.parts = [[layer[rows_K] for layer in part] for part in self.parts]


class RNNDecoder(RecurrentDecoder):
    def _cell(self, i: int, x: Floats32) -> Floats32:
        of_input, of_hidden = self.layers[i]
        h = of_hidden(self.parts[0][i])
        h += of_input(x)
        self.parts[0][i] = np.tanh(h, out=h)
        return h


class GRUDecoder(RecurrentDecoder):
    """PyTorch's order of gates: reset, update, new."""

    def _prepare(self, weights: Weights) -> tuple[Linear, Linear]:
        w, b, u, c = weights
        return Linear(w, b), Linear(u, c)  # the reset gate applies to the hidden bias of the new values

    def _cell(self, i: int, x: Floats32) -> Floats32:
        of_input, of_hidden = self.layers[i]
        h, gates = self.parts[0][i], slice(0, 2 * self.size)
        from_input, from_hidden = of_input(x), of_hidden(h)
        sigmoids = sigmoid(from_input[:, gates] + from_hidden[:, gates])
        new = from_hidden[:, 2 * self.size :]
        new *= sigmoids[:, : self.size]
        new += from_input[:, 2 * self.size :]
        np.tanh(new, out=new)
        h = h - new
        h *= sigmoids[:, self.size :]
        h += new
        self.parts[0][i] = h
        return h


class LSTMDecoder(RecurrentDecoder):
    """PyTorch's order of gates: input, forget, new, output."""

    def _prepare(self, weights: Weights) -> tuple[Linear, Linear]:
        # A sigmoid is a tanh of half its argument, so one tanh serves all four. The new values come first,
        # then input, forget, output.
        size = self.size
        order = np.r_[2 * size : 3 * size, : 2 * size, 3 * size : 4 * size]
        scale = np.where(np.arange(4 * size) < size, 1.0, 0.5).astype(np.float32)
        w, b, u, c = weights
        return Linear(w[:, order] * scale, (b + c)[order] * scale), Linear(u[:, order] * scale)

    def _cell(self, i: int, x: Floats32) -> Floats32:
        of_input, of_hidden = self.layers[i]
        size = self.size
        z = of_hidden(self.parts[0][i])
        z += of_input(x)
        np.tanh(z, out=z)
        gates = z[:, size:]
        gates *= 0.5
        gates += 0.5
        cell = self.parts[1][i]
        cell *= gates[:, size : 2 * size]
        cell += gates[:, :size] * z[:, :size]
        h = np.tanh(cell)
        h *= gates[:, 2 * size :]
        self.parts[0][i] = h
        return h


def _weights(model: Recurrent, layer: int) -> Weights:
    ih, hh = (
        (
            to_matrix(model.layers.get_parameter(f"weight_{side}_l{layer}")),
            to_array(model.layers.get_parameter(f"bias_{side}_l{layer}")),
        )
        for side in ("ih", "hh")
    )
    return (*ih, *hh)


@fast_decoder.register(Recurrent)
def _decoder(model: Recurrent) -> FastDecoder:
    kinds: dict[type[torch.nn.RNNBase], type[RecurrentDecoder]] = {
        torch.nn.RNN: RNNDecoder,
        torch.nn.GRU: GRUDecoder,
        torch.nn.LSTM: LSTMDecoder,
    }
    return kinds[type(model.layers)](model)
