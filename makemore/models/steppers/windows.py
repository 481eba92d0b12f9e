"""Models of a fixed window, and the table of pairs, one token a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from makemore.models.steppers import Floats, Ints, Stepper, array, matrix
from makemore.types import State

if TYPE_CHECKING:
    from makemore.models.batchnorm_mlp import BatchNormMLP
    from makemore.models.bigram import Bigram
    from makemore.models.bow import BagOfWords
    from makemore.models.mlp import MLP
    from makemore.nn.batchnorm import BatchNorm


def folded_norm(weight: Floats, norm: BatchNorm) -> tuple[Floats, Floats]:
    """A layer without bias and the batch normalisation after it, as one layer: weight (in, out), bias."""
    scale = array(norm.weight / (norm.running_var + norm.eps).sqrt())
    return weight * scale, array(norm.bias) - array(norm.running_mean) * scale


class BigramStepper(Stepper):
    """A row of the table."""

    def __init__(self, model: Bigram) -> None:
        self.table = array(model.W)

    def load(self, state: State) -> None: ...

    def step(self, ids_B: Ints) -> Floats:
        return self.table.take(ids_B, 0)

    def keep(self, rows_K: Ints) -> None: ...


class WindowStepper(Stepper):
    """The last tokens' embeddings, side by side, through tanh layers."""

    def __init__(
        self, size: int, boundary_id: int, embedding: Floats, layers: list[tuple[Floats, Floats]]
    ) -> None:
        self.size, self.boundary_id = size, boundary_id
        self.embedding = embedding
        *self.layers, self.head = layers

    @classmethod
    def of_mlp(cls, model: MLP) -> WindowStepper:
        layers = [(matrix(layer.weight), array(layer.bias)) for layer in [*model.hidden, model.head]]
        return cls(model.config.block_size, model.boundary_id, array(model.embedding.weight), layers)

    @classmethod
    def of_batchnorm_mlp(cls, model: BatchNormMLP) -> WindowStepper:
        pairs = zip(model.hidden, model.norms, strict=True)
        layers = [folded_norm(matrix(layer.weight), norm) for layer, norm in pairs]  # type: ignore[arg-type]
        layers.append((matrix(model.head.weight), array(model.head.bias)))
        return cls(model.config.block_size, model.boundary_id, array(model.embedding.weight), layers)

    def load(self, state: State) -> None:
        before = array(state[0])
        newest = np.full_like(before[:, :1], self.boundary_id, shape=(len(before), 1))
        self.window = np.concatenate([newest, before], axis=1)
        # What stands before a boundary is boundary too.
        begun = np.flip(np.logical_or.accumulate(np.flip(self.window == self.boundary_id, 1), axis=1), 1)
        self.window[begun] = self.boundary_id

    def step(self, ids_B: Ints) -> Floats:
        self.window[:, :-1] = self.window[:, 1:]
        self.window[:, -1] = ids_B
        new = ids_B == self.boundary_id
        if np.count_nonzero(new):
            self.window[new] = self.boundary_id
        x = self.embedding.take(self.window, 0).reshape(len(ids_B), -1)
        for weight, bias in self.layers:
            x = np.dot(x, weight)
            x += bias
            np.tanh(x, out=x)
        logits = np.dot(x, self.head[0])
        logits += self.head[1]
        return logits

    def keep(self, rows_K: Ints) -> None:
        self.window = self.window[rows_K]


class BagOfWordsStepper(Stepper):
    """The newest token and the average of the window."""

    def __init__(self, model: BagOfWords) -> None:
        embedding = array(model.embedding.weight)
        # Index -1, where there is no token yet, is a row of zeros.
        self.embedding = np.concatenate([embedding, np.zeros_like(embedding[:1])])
        layers = (model.up, model.down, model.head)
        self.up, self.down, self.head = ((matrix(n.weight), array(n.bias)) for n in layers)

    def load(self, state: State) -> None:
        before = array(state[0])
        self.window = np.concatenate([np.full((len(before), 1), -1), before], axis=1)

    def step(self, ids_B: Ints) -> Floats:
        self.window[:, :-1] = self.window[:, 1:]
        self.window[:, -1] = ids_B
        x = np.add.reduce(self.embedding.take(self.window, 0, mode="wrap"), axis=1)
        x /= np.count_nonzero(self.window >= 0, axis=1, keepdims=True).astype(np.float32)
        x += self.embedding.take(ids_B, 0)
        h = np.dot(x, self.up[0])
        h += self.up[1]
        x += np.dot(np.tanh(h, out=h), self.down[0])
        x += self.down[1]
        logits = np.dot(x, self.head[0])
        logits += self.head[1]
        return logits

    def keep(self, rows_K: Ints) -> None:
        self.window = self.window[rows_K]
