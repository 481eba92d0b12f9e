"""The recurrent networks, one token a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from makemore.models.steppers import Floats, Ints, Stepper, array, matrix, sigmoid
from makemore.types import State

if TYPE_CHECKING:
    from makemore.models.rnn import Recurrent


class RecurrentStepper(Stepper):
    """Layer by layer; ``_cell`` is what distinguishes the three networks."""

    def __init__(self, model: Recurrent) -> None:
        layers = model.layers
        self.size = model.config.n_hidden
        self.embedding = array(model.embedding.weight)
        self.head, self.head_bias = matrix(model.head.weight), array(model.head.bias)
        names = [f"{side}_l{i}" for i in range(model.config.n_layer) for side in ("ih", "hh")]
        weights = [matrix(getattr(layers, f"weight_{name}")) for name in names]
        biases = [array(getattr(layers, f"bias_{name}")) for name in names]
        self.layers = list(zip(weights[0::2], biases[0::2], weights[1::2], biases[1::2], strict=True))

    def load(self, state: State) -> None:
        # A list, by layer, of arrays that ``_cell`` replaces.
        self.parts = [[array(part[:, i]).copy() for i in range(len(self.layers))] for part in state]

    def step(self, ids_B: Ints) -> Floats:
        x = self.embedding.take(ids_B, 0)
        for i in range(len(self.layers)):
            x = self._cell(i, x)
        logits = np.dot(x, self.head)
        logits += self.head_bias
        return logits

    def _cell(self, i: int, x: Floats) -> Floats:
        """The hidden vectors (B, H) of layer ``i`` after input ``x``."""
        raise NotImplementedError

    def keep(self, rows_K: Ints) -> None:
        self.parts = [[layer[rows_K] for layer in part] for part in self.parts]


class RNNStepper(RecurrentStepper):
    def _cell(self, i: int, x: Floats) -> Floats:
        w, b, u, c = self.layers[i]
        h = np.dot(self.parts[0][i], u)
        h += np.dot(x, w)
        h += b + c
        self.parts[0][i] = np.tanh(h, out=h)
        return h


class GRUStepper(RecurrentStepper):
    """PyTorch's order of gates: reset, update, new."""

    def _cell(self, i: int, x: Floats) -> Floats:
        w, b, u, c = self.layers[i]
        h, gates = self.parts[0][i], slice(0, 2 * self.size)
        by_input, by_hidden = np.dot(x, w), np.dot(h, u)
        by_input += b
        by_hidden += c
        open_ = sigmoid(by_input[:, gates] + by_hidden[:, gates])
        new = by_hidden[:, 2 * self.size :]
        new *= open_[:, : self.size]
        new += by_input[:, 2 * self.size :]
        np.tanh(new, out=new)
        h = h - new
        h *= open_[:, self.size :]
        h += new
        self.parts[0][i] = h
        return h


class LSTMStepper(RecurrentStepper):
    """PyTorch's order of gates: input, forget, new, output."""

    def __init__(self, model: Recurrent) -> None:
        super().__init__(model)
        # Half the argument of each gate's sigmoid, so that one tanh serves all four: the new values come
        # first, then input, forget, output.
        size = self.size
        order = np.r_[2 * size : 3 * size, : 2 * size, 3 * size : 4 * size]
        scale = np.where(np.arange(4 * size) < size, 1.0, 0.5).astype(np.float32)
        self.layers = [
            (w[:, order] * scale, (b + c)[order] * scale, u[:, order] * scale, c)
            for w, b, u, c in self.layers
        ]

    def _cell(self, i: int, x: Floats) -> Floats:
        w, b, u, _ = self.layers[i]
        size = self.size
        z = np.dot(self.parts[0][i], u)
        z += np.dot(x, w)
        z += b
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


def recurrent_stepper(model: Recurrent) -> Stepper:
    """The stepper of the model's kind of layer."""
    kinds: dict[type[torch.nn.RNNBase], type[RecurrentStepper]] = {
        torch.nn.RNN: RNNStepper,
        torch.nn.GRU: GRUStepper,
        torch.nn.LSTM: LSTMStepper,
    }
    return kinds[type(model.layers)](model)
