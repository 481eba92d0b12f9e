"""The transformer, one token a row."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
from torch import nn

from makemore.models.steppers import Floats, Ints, Stepper, array, matrix
from makemore.nn.convolution import ShortConv
from makemore.types import State

if TYPE_CHECKING:
    from makemore.models.transformer import Block, Transformer


Linear = tuple[Floats, Floats]
"""Weight (in, out) and bias, which is empty where there is none."""


class Layer(NamedTuple):
    """A block, ready for use."""

    qkv: Linear
    out: Linear
    up: Linear
    down: Linear
    convs: tuple[Conv, ...]


class Conv:
    """A short convolution over a ring of the last inputs, (K, B, C)."""

    def __init__(self, conv: ShortConv) -> None:
        weight = array(conv.weight).copy()
        weight[0] += 1  # what is added to
        self.size = size = conv.width
        slots = np.arange(size)
        # (K, K, 1, C): the weight of each slot while the newest input lies in the first, second, …
        self.weights = weight[(slots[:, None] - slots) % size][:, :, None]

    def load(self, tail_BKC: Floats) -> None:
        """``tail_BKC``: the inputs before, oldest first."""
        newest = np.zeros_like(tail_BKC[:, :1])
        self.ring = np.concatenate([tail_BKC, newest], axis=1).swapaxes(0, 1).copy()
        self.slot = self.size - 1

    def forget(self, seen_B: Ints) -> None:
        """Count only the last ``seen_B`` inputs of each row."""
        back = (self.slot - 1 - np.arange(self.size)) % self.size
        self.ring[back[:, None] >= seen_B] = 0

    def __call__(self, x: Floats) -> Floats:
        self.ring[self.slot] = x
        mixed = np.add.reduce(self.ring * self.weights[self.slot], axis=0)
        self.slot = (self.slot + 1) % self.size
        return mixed


class TransformerStepper(Stepper):
    """Keys and values lie in arrays with room for a whole context, of which a view is attended to.

    Rotary pairs are put side by side, in queries and keys alike, which no product of the two notices: a
    pair is then one complex number, and turning it one multiplication. Gains and biases of LayerNorm are
    part of the layers that follow.
    """

    def __init__(self, model: Transformer) -> None:
        config = model.config
        self.heads, self.modern = config.n_head, model.positions is None
        self.head_dim = config.n_embd // config.n_head
        self.boundary_id = model.boundary_id
        self.eps = 1e-6 if self.modern else 1e-5
        self.mean_C1 = np.full((config.n_embd, 1), 1 / config.n_embd, np.float32)
        self.scale = np.float32(1 / math.sqrt(self.head_dim))
        self.layers = [self._layer(cast("Block", block)) for block in model.blocks]
        self.head = _folded(model.norm, model.head)
        self.embedding = array(model.embedding.weight)
        self.activation: Callable[[Floats], Floats] = _squared_relu if self.modern else _gelu
        if model.positions is None:
            self.embedding = self._norm(self.embedding)
            turn = array(model.cos) + 1j * array(model.sin)
            self.turns = turn.astype(np.complex64)
            # (T, 2 H, D / 2): queries are scaled for attention on the way.
            self.turns_qk = np.repeat(self.turns[:, None], 2 * self.heads, axis=1)
            self.turns_qk[:, : self.heads] *= self.scale
            self.head_means = np.kron(
                np.eye(2 * self.heads, dtype=np.float32),
                np.full((self.head_dim, 1), 1 / self.head_dim, np.float32),
            )
        else:
            self.positions = array(model.positions.weight)

    def _layer(self, block: Block) -> Layer:
        weight, bias = _folded(block.norm1, block.attention.qkv)
        if self.modern:
            weight = np.ascontiguousarray(weight[:, self._paired()])
        else:
            # Queries are scaled for attention once and for all.
            width = self.heads * self.head_dim
            weight[:, :width] *= self.scale
            bias[:width] *= self.scale
        down, down_bias = _folded(None, block.feed_forward.down)
        return Layer(
            (weight, bias),
            _folded(None, block.attention.out),
            _folded(block.norm2, block.feed_forward.up),
            (down * np.float32(0.25) if self.modern else down, down_bias),
            tuple(Conv(cast(ShortConv, conv)) for conv in block.convs),
        )

    def _paired(self) -> Ints:
        """(3 C,): the order of qkv's outputs that brings i and i + D / 2 of queries and keys together."""
        order = np.arange(3 * self.heads * self.head_dim).reshape(3, self.heads, 2, self.head_dim // 2)
        paired = order[:2].swapaxes(2, 3)
        return np.concatenate([paired.ravel(), order[2].ravel()])

    def load(self, state: State) -> None:
        self.at = int(state[0][0])
        self.starts = array(state[1]).copy()
        size = (len(state) - 2) // len(self.layers)
        keys, values, *tails = ([array(p).copy() for p in state[2 + i :: size]] for i in range(size))
        if self.modern:
            shape = keys[0].shape
            halves = (*shape[:3], 2, self.head_dim // 2)
            keys = [k.reshape(halves).swapaxes(3, 4).reshape(shape) for k in keys]
        self.keys, self.values = keys, values
        for i, layer in enumerate(self.layers):
            for conv, tail in zip(layer.convs, tails, strict=True):
                conv.load(tail[i])
        self._begin()

    def step(self, ids_B: Ints) -> Floats:
        new = ids_B == self.boundary_id
        if np.count_nonzero(new):
            self.starts[new] = self.at
            self._begin()
        first, bias = self.first, None
        if self.ragged:  # rows that see less than others
            unseen = np.arange(first, self.at + 1) < self.starts[:, None]
            bias = np.where(unseen, np.float32(-np.inf), np.float32(0))[:, None, None]
        x = self.embedding.take(ids_B, 0)
        if not self.modern:
            x += self.positions.take(self.at - self.starts, 0)
        for i, layer in enumerate(self.layers):
            h = self._norm(x)
            h = layer.convs[0](h) if layer.convs else h
            x += _linear(self._attend(i, _linear(h, layer.qkv), first, bias), layer.out)
            h = self._norm(x)
            h = layer.convs[1](h) if layer.convs else h
            x += _linear(self.activation(_linear(h, layer.up)), layer.down)
        self.at += 1
        return _linear(self._norm(x), self.head)

    def _attend(self, i: int, qkv: Floats, first: int, bias: Floats | None) -> Floats:
        """(B, C), the heads side by side; puts the new keys and values into the cache."""
        rows, heads, width = len(qkv), self.heads, self.heads * self.head_dim
        qk = qkv[:, : 2 * width]
        if self.modern:
            scale = np.sqrt(np.dot(qk * qk, self.head_means) + self.eps)
            qk = qk.reshape(rows, 2 * heads, self.head_dim) / scale[:, :, None]
            turned = qk.view(np.complex64)
            turned *= self.turns_qk[self.at]
        qk = qk.reshape(rows, 2, heads, self.head_dim)
        keys, values, after = self.keys[i], self.values[i], self.at + 1
        keys[:, :, self.at] = qk[:, 1]
        values[:, :, self.at] = qkv[:, 2 * width :].reshape(rows, heads, self.head_dim)
        scores = qk[:, 0, :, None] @ keys[:, :, first:after].swapaxes(2, 3)
        if bias is not None:
            scores += bias
        if not self.modern:  # of normalised queries and keys, no score passes sqrt(D)
            scores -= np.maximum.reduce(scores, axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        mixed = scores @ values[:, :, first:after]
        mixed /= np.add.reduce(scores, axis=-1, keepdims=True)
        return mixed.reshape(rows, width)

    def _norm(self, x: Floats) -> Floats:
        """Without gain and bias."""
        if not self.modern:
            x = x - np.dot(x, self.mean_C1)
        if len(x) == 1:  # a number costs less than an array of one
            return x * np.float32((float(np.vdot(x, x)) / x.size + self.eps) ** -0.5)
        return x / np.sqrt(np.dot(x * x, self.mean_C1) + self.eps)

    def _begin(self) -> None:
        """Let nothing be seen of what stands before a row's document."""
        for layer in self.layers:
            for conv in layer.convs:
                conv.forget(self.at - self.starts)
        self.first = int(self.starts.min())
        self.ragged = int(self.starts.max()) > self.first

    def keep(self, rows_K: Ints) -> None:
        for layer in self.layers:
            for conv in layer.convs:
                conv.ring = conv.ring[:, rows_K]
        self.starts = self.starts[rows_K]
        self._begin()
        self.keys = [k[rows_K] for k in self.keys]
        self.values = [v[rows_K] for v in self.values]

    def roll(self, keep: int) -> bool:
        if not self.modern:
            return False
        gone = self.at - keep
        back = self.turns[gone].conj() if keep else self.turns[0]
        for keys, values in zip(self.keys, self.values, strict=True):
            kept = keys[:, :, gone : self.at].view(np.complex64) * back
            keys[:, :, :keep] = kept.view(np.float32)
            values[:, :, :keep] = values[:, :, gone : self.at].copy()
        self.at = keep
        self.starts = np.maximum(self.starts - gone, 0)
        self._begin()
        return True


def _linear(x: Floats, layer: Linear) -> Floats:
    weight, bias = layer
    y = np.dot(x, weight)
    if bias.size:
        y += bias
    return y


def _folded(norm: nn.Module | None, layer: nn.Linear) -> Linear:
    """A layer with the gain and bias of the norm before it."""
    weight = matrix(layer.weight).copy()
    bias = np.zeros(0, np.float32) if layer.bias is None else array(layer.bias).copy()
    if not isinstance(norm, nn.LayerNorm):
        return weight, bias
    shift = np.dot(array(norm.bias), weight)
    bias = shift if layer.bias is None else bias + shift
    return weight * array(norm.weight)[:, None], bias


def _squared_relu(h: Floats) -> Floats:
    # Four times relu(h)²: numpy's maximum with a scalar takes as long as all this. A quarter of it is
    # in the layer that follows.
    h += np.abs(h)
    h *= h
    return h


def _gelu(h: Floats) -> Floats:
    inner = h * h
    inner *= 0.044715
    inner += 1
    inner *= h
    inner *= math.sqrt(2 / math.pi)
    np.tanh(inner, out=inner)
    inner += 1
    inner *= h
    inner *= 0.5
    return inner
