"""Fixed-window models and the bigram table, one token per row."""

from __future__ import annotations

from typing import cast

import numpy as np
from torch import nn

from makemore.models.batchnorm_mlp import BatchNormMLP
from makemore.models.bigram import Bigram
from makemore.models.bow import BagOfWords
from makemore.models.layers.batchnorm import BatchNorm
from makemore.models.mlp import MLP
from makemore.sampling.decoders.base import (
    FastDecoder,
    Linear,
    fast_decoder,
    to_array,
    to_matrix,
)
from makemore.types import Floats32, Ints, State


def fold_batchnorm(layer: nn.Linear, norm: BatchNorm) -> Linear:
    """Fold batch normalisation into the layer before it, which has no bias."""
    scale = to_array(norm.weight / (norm.running_var + norm.eps).sqrt())
    return Linear(to_matrix(layer.weight) * scale, to_array(norm.bias) - to_array(norm.running_mean) * scale)


@fast_decoder.register(Bigram)
class BigramDecoder(FastDecoder):
    """Looks up rows of the table."""

    duplicates_single_row = False

    def __init__(self, model: Bigram) -> None:
        self.table = to_array(model.W)

    def load(self, state: State) -> None: ...

    def step(self, ids_B: Ints) -> Floats32:
        return self.table.take(ids_B, 0)

    def select_rows(self, rows_K: Ints) -> None: ...


class WindowDecoder(FastDecoder):
    """Feeds the concatenated embeddings of the last tokens through tanh layers."""

    def __init__(self, model: MLP | BatchNormMLP, layers: list[Linear]) -> None:
        self.boundary_id = model.boundary_id
        self.embedding = to_array(model.embedding.weight)
        self.layers, self.head = layers, Linear.from_layer(model.head)

    def load(self, state: State) -> None:
        context = to_array(state[0])
        newest = np.full_like(context[:, :1], self.boundary_id, shape=(len(context), 1))
        self.window = np.concatenate([newest, context], axis=1)
        # Tokens before a boundary also count as boundaries.
        is_past = np.flip(np.logical_or.accumulate(np.flip(self.window == self.boundary_id, 1), axis=1), 1)
        self.window[is_past] = self.boundary_id

    def step(self, ids_B: Ints) -> Floats32:
        self.window[:, :-1] = self.window[:, 1:]
        self.window[:, -1] = ids_B
        starts = ids_B == self.boundary_id
        if np.count_nonzero(starts):
            self.window[starts] = self.boundary_id
        x = self.embedding.take(self.window, 0).reshape(len(ids_B), -1)
        for layer in self.layers:
            x = layer(x)
            np.tanh(x, out=x)
        return self.head(x)

    def select_rows(self, rows_K: Ints) -> None:
        self.window = self.window[rows_K]


@fast_decoder.register(MLP)
def _mlp(model: MLP) -> WindowDecoder:
    return WindowDecoder(model, [Linear.from_layer(cast(nn.Linear, layer)) for layer in model.hidden])


@fast_decoder.register(BatchNormMLP)
def _batchnorm_mlp(model: BatchNormMLP) -> WindowDecoder:
    pairs = zip(model.hidden, model.norms, strict=True)
    return WindowDecoder(
        model, [fold_batchnorm(cast(nn.Linear, h), cast(BatchNorm, norm)) for h, norm in pairs]
    )


@fast_decoder.register(BagOfWords)
class BagOfWordsDecoder(FastDecoder):
    """Adds the newest embedding to the mean of the window."""

    def __init__(self, model: BagOfWords) -> None:
        embedding = to_array(model.embedding.weight)
        # Index -1 (no token yet) is a row of zeros.
        self.embedding = np.concatenate([embedding, np.zeros_like(embedding[:1])])
        self.up, self.down, self.head = map(Linear.from_layer, (model.up, model.down, model.head))

    def load(self, state: State) -> None:
        context = to_array(state[0])
        self.window = np.concatenate([np.full((len(context), 1), -1), context], axis=1)

    def step(self, ids_B: Ints) -> Floats32:
        self.window[:, :-1] = self.window[:, 1:]
        self.window[:, -1] = ids_B
        x = np.add.reduce(self.embedding.take(self.window, 0, mode="wrap"), axis=1)
        x /= np.count_nonzero(self.window >= 0, axis=1, keepdims=True).astype(np.float32)
        x += self.embedding.take(ids_B, 0)
        h = self.up(x)
        x += self.down(np.tanh(h, out=h))
        return self.head(x)

    def select_rows(self, rows_K: Ints) -> None:
        self.window = self.window[rows_K]
