"""The transformer, one token a row."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from makemore.models.layers.convolution import ShortConv
from makemore.sampling.decoders.base import Floats, Ints, Linear, Stepper, array, matrix
from makemore.types import State

if TYPE_CHECKING:
    from makemore.models.transformer import Block, Transformer


CACHED = 16
"""Rows from which a convolution's products leave a processor's nearest cache."""


class Layer(NamedTuple):
    """A block, ready for use."""

    qkv: Linear
    out: Linear
    up: Linear
    down: Linear


class Look(NamedTuple):
    """What all layers of a step look at: views of the caches, (L, …)."""

    turns: NDArray[np.complex64] | None
    new_keys: Floats
    new_values: Floats
    keys: Floats
    values: Floats
    ones: Floats
    bias: Floats | None
    """Added to scores where rows see less than others."""


class TransformerStepper(Stepper):
    """Keys and values lie in arrays with room for a whole context, (L, B, H, D, T) and (L, B, H, T, D), of
    which a view is attended to; convolutions have rings of their last inputs, (2 L, K, B, C).

    Rotary pairs are put side by side, in queries and keys alike, which no product of the two notices: a
    pair is then one complex number, and turning it one multiplication. Constant factors, and LayerNorm's
    gains and biases, are part of the layers that follow.
    """

    linear: Callable[..., Any] = Linear
    """What makes a layer of a weight (in, out) and a bias."""

    def __init__(self, model: Transformer) -> None:
        config = model.config
        self.heads, self.modern = config.n_head, model.positions is None
        self.width, self.head_dim = config.n_embd, config.n_embd // config.n_head
        self.boundary_id = model.boundary_id
        # Of sums of squares rather than means: what is left out is part of the layers that follow.
        self.root = np.float32(math.sqrt(self.width))
        # Arrays of one: numpy takes longer to make such of a number than to add it.
        self.eps = np.full(1, (1e-6 if self.modern else 1e-5) * self.width, np.float32)
        self.head_eps = np.full(1, 1e-6 * self.head_dim, np.float32)
        self.mean_C = np.full(self.width, 1 / self.width, np.float32)
        self.ones_T = np.ones(config.block_size, np.float32)
        self.layers = [self._layer(cast("Block", block)) for block in model.blocks]
        self.head = self.linear(*self._folded(model.norm, model.head))
        convs = [
            _slots(cast(ShortConv, conv)) for block in model.blocks for conv in cast("Block", block).convs
        ]
        self.slots = config.conv if convs else 1
        # (K, 2 L, K, 1, C)
        self.mixers = np.stack(convs, axis=1) if convs else np.zeros(0, np.float32)
        self.embedding = array(model.embedding.weight)
        self.activation: Callable[[Floats], Floats] = _squared_relu if self.modern else _gelu
        if model.positions is None:
            self.embedding = self._norm(self.embedding) * self.root
            self.turns = (array(model.cos) + 1j * array(model.sin)).astype(np.complex64)
            # (T, 2 H, D / 2): attention's scale, that of queries, is undone by what norms leave out.
            self.turns_qk = np.repeat(self.turns[:, None], 2 * self.heads, axis=1)
            self.turns_qk[:, self.heads :] *= np.float32(math.sqrt(self.head_dim))
        else:
            self.positions = array(model.positions.weight)

    def _layer(self, block: Block) -> Layer:
        weight, bias = self._folded(block.norm1, block.attention.qkv)
        if bias is None:
            weight = weight[:, self._paired()]
        else:
            # Queries are scaled for attention once and for all.
            scale = np.float32(1 / math.sqrt(self.head_dim))
            weight[:, : self.width] *= scale
            bias[: self.width] *= scale
        down, down_bias = self._folded(None, block.feed_forward.down)
        return Layer(
            self.linear(weight, bias),
            self.linear(*self._folded(None, block.attention.out)),
            self.linear(*self._folded(block.norm2, block.feed_forward.up)),
            self.linear(down * np.float32(0.25) if self.modern else down, down_bias),
        )

    def _paired(self) -> Ints:
        """(3 C,): the order of qkv's outputs that brings i and i + D / 2 of queries and keys together."""
        order = np.arange(3 * self.width).reshape(3, self.heads, 2, self.head_dim // 2)
        paired = order[:2].swapaxes(2, 3)
        return np.concatenate([paired.ravel(), order[2].ravel()])

    def _folded(self, norm: nn.Module | None, layer: nn.Linear) -> tuple[Floats, Floats | None]:
        """A layer's weight (in, out) and bias, with what the norm before it leaves to it."""
        weight = matrix(layer.weight).copy()
        bias = None if layer.bias is None else array(layer.bias).copy()
        if isinstance(norm, nn.LayerNorm):
            shift = np.dot(array(norm.bias), weight)
            bias = shift if bias is None else bias + shift
            weight *= array(norm.weight)[:, None]
        if norm is not None:
            weight *= self.root
        return weight, bias

    def load(self, state: State) -> None:
        self.at = int(state[0][0])
        self.starts = array(state[1]).copy()
        size = (len(state) - 2) // len(self.layers)
        keys, values, *tails = ([array(p) for p in state[2 + i :: size]] for i in range(size))
        rows, _, room, _ = keys[0].shape
        halves = (rows, self.heads, room, *((2, self.head_dim // 2) if self.modern else (1, self.head_dim)))
        shape = (rows, self.heads, self.head_dim, room)
        keys = [k.reshape(halves).transpose(0, 1, 4, 3, 2).reshape(shape) for k in keys]
        self.keys, self.values = np.ascontiguousarray(np.stack(keys)), np.stack(values)
        # The inputs before, oldest first, and a slot for the newest.
        after = [tail.swapaxes(0, 1) for of_layer in zip(*tails, strict=True) for tail in of_layer]
        self.rings = np.pad(np.stack(after), ((0, 0), (0, 1), (0, 0), (0, 0))) / self.root if after else None
        self.slot = 0 if self.rings is None else self.rings.shape[1] - 1
        self._begin()

    def step(self, ids_B: Ints) -> Floats:
        self._end_documents(ids_B)
        x = self.embedding.take(ids_B, 0)
        if not self.modern:
            x += self.positions.take(self.at - self.starts, 0)
        look = self._look()
        for i, layer in enumerate(self.layers):
            h = self._mix(2 * i, self._norm(x))
            x += layer.out(self._attend(i, layer.qkv(h), look))
            h = self._mix(2 * i + 1, self._norm(x))
            x += layer.down(self.activation(layer.up(h)))
        self._advance()
        return self.head(self._norm(x))

    def _end_documents(self, ids_B: Ints) -> None:
        new = ids_B == self.boundary_id
        if np.count_nonzero(new):
            self.starts[new] = self.at
            if self.rings is not None:
                self.rings[:, :, new] = 0
            self._see()

    def _advance(self) -> None:
        self.at += 1
        self.slot = (self.slot + 1) % self.slots

    def _look(self) -> Look:
        at, seen = self.at, slice(self.first, self.at + 1)
        bias = None
        if self.ragged:  # rows that see less than others
            unseen = np.arange(self.first, at + 1) < self.starts[:, None]
            bias = np.where(unseen, np.float32(-np.inf), np.float32(0))[:, None, None]
        return Look(
            self.turns_qk[at] if self.modern else None,
            self.keys[..., at],
            self.values[:, :, :, at],
            self.keys[..., seen],
            self.values[:, :, :, seen],
            self.ones_T[: at + 1 - self.first],
            bias,
        )

    def _attend(self, i: int, qkv: Floats, look: Look) -> Floats:
        """(B, C), the heads side by side; puts the new keys and values into the cache."""
        rows, heads, width = len(qkv), self.heads, self.width
        qk = qkv[:, : 2 * width].reshape(rows, 2 * heads, self.head_dim)
        if look.turns is not None:
            size = np.vecdot(qk, qk)
            size += self.head_eps
            qk = qk / np.sqrt(size, size)[:, :, None]
            turned = qk.view(np.complex64)
            turned *= look.turns
        look.new_keys[i] = qk[:, heads:]
        look.new_values[i] = qkv[:, 2 * width :].reshape(rows, heads, self.head_dim)
        scores = qk[:, :heads, None] @ look.keys[i]
        if look.bias is not None:
            scores += look.bias
        if not self.modern:  # of normalised queries and keys, no score passes sqrt(D)
            scores -= np.maximum.reduce(scores, axis=-1, keepdims=True)
        np.exp(scores, scores)
        mixed = scores @ look.values[i]
        mixed /= np.vecdot(scores, look.ones)[..., None]
        return mixed.reshape(rows, width)

    def _mix(self, nth: int, x: Floats) -> Floats:
        """The nth convolution, of the newest input, which goes into its ring, and the ones before."""
        if self.rings is None:
            return x
        ring, weights = self.rings[nth], self.mixers[self.slot, nth]
        ring[self.slot] = x
        if len(x) < CACHED:
            return np.add.reduce(ring * weights, 0)
        # The same sums in the same order, in less memory.
        mixed = ring[0] * weights[0]
        for before, weight in zip(ring[1:], weights[1:], strict=True):
            mixed += before * weight
        return mixed

    def _norm(self, x: Floats) -> Floats:
        """Without gain and bias, and divided by the root of the width."""
        if not self.modern:
            x = x - np.vecdot(x, self.mean_C)[:, None]
        size = np.vecdot(x, x)
        size += self.eps
        return x / np.sqrt(size, size)[:, None]

    def _begin(self) -> None:
        """Let nothing be seen of what stands before a row's document."""
        if self.rings is not None:
            back = (self.slot - 1 - np.arange(self.slots)) % self.slots
            self.rings[:, back[:, None] >= self.at - self.starts] = 0
        self._see()

    def _see(self) -> None:
        """Know from where rows see."""
        self.first = int(self.starts.min())
        self.ragged = int(self.starts.max()) > self.first

    def keep(self, rows_K: Ints) -> None:
        if self.rings is not None:
            self.rings = self.rings.take(rows_K, 2)
        self.starts = self.starts[rows_K]
        # Only what is in use: of names, for one, it is a small part.
        layers, _, heads, room, size = self.values.shape
        keys, values = self.keys, self.values
        self.keys = np.empty((layers, len(rows_K), heads, size, room), np.float32)
        self.values = np.empty((layers, len(rows_K), heads, room, size), np.float32)
        self.keys[..., : self.at] = keys[..., : self.at][:, rows_K]
        self.values[..., : self.at, :] = values[..., : self.at, :][:, rows_K]
        self._begin()

    def roll(self, keep: int) -> bool:
        if not self.modern:
            return False
        gone = self.at - keep
        if keep:
            self._move(gone, keep, self.turns[gone].conj())
        self.at = keep
        self.starts = np.maximum(self.starts - gone, 0)
        self._begin()
        return True

    def _move(self, gone: int, keep: int, back: NDArray[np.complex64]) -> None:
        """To the front, and keys turned back as far."""
        kept = slice(gone, gone + keep)
        keys = np.ascontiguousarray(self.keys[..., kept].swapaxes(3, 4)).view(np.complex64)
        self.keys[..., :keep] = (keys * back).view(np.float32).swapaxes(3, 4)
        self.values[:, :, :, :keep] = self.values[:, :, :, kept].copy()


def _slots(conv: ShortConv) -> Floats:
    """(K, K, 1, C): the weight of each slot of a ring while the newest input lies in the first, second, …"""
    weight = array(conv.weight).copy()
    weight[0] += 1  # what is added to
    slots = np.arange(conv.width)
    return weight[(slots[:, None] - slots) % conv.width][:, :, None]


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
