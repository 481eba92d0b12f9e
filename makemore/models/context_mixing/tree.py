"""Binary code trees over a vocabulary: symbols that occur in similar contexts share nodes.

Symbols are merged bottom-up, first the pair that loses the least information about the preceding symbol
(Brown et al. 1992). Rare symbols of a large vocabulary are merged by frequency alone (Huffman 1952).
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from makemore.types import Floats

MAX_CLUSTERED = 256
"""Number of the most frequent symbols that are clustered; this takes cubic time."""

Nested = int | tuple["Nested", "Nested"]


class CodeTree(NamedTuple):
    """A binary tree whose leaves, from left to right, are the symbols by rank.

    The node that separates ranks ``m - 1`` and ``m`` is number ``m``; node 0 doesn't exist.
    """

    rank_V: NDArray[np.int32]
    """Rank of each symbol."""
    left_V: NDArray[np.int32]
    """Left child of each node; 0 for a leaf."""
    right_V: NDArray[np.int32]


def code_tree(tokens_N: NDArray[np.integer], vocab_size: int) -> CodeTree:
    """Build the tree of a vocabulary from a text."""
    counts_V = np.bincount(tokens_N, minlength=vocab_size)
    by_count = np.argsort(-counts_V, kind="stable")
    frequent, rare = by_count[: MAX_CLUSTERED - 1], by_count[MAX_CLUSTERED - 1 :]
    group_V = np.full(vocab_size, len(frequent))
    group_V[frequent] = np.arange(len(frequent))
    items: list[Nested] = frequent.tolist()
    if len(rare):
        items.append(_huffman([(float(counts_V[v]), int(v)) for v in rare]))
    return _flatten(_cluster(group_V[tokens_N], items), vocab_size)


def _huffman(weighted: list[tuple[float, int]]) -> Nested:
    heap: list[tuple[float, int, Nested]] = [(weight, i, v) for i, (weight, v) in enumerate(weighted)]
    heapq.heapify(heap)
    for i in range(len(heap), 2 * len(heap) - 1):
        (a, _, left), (b, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        heapq.heappush(heap, (a + b, i, (left, right)))
    return heap[0][2]


def _xlogx(x: NDArray) -> Floats:
    return x * np.log(np.maximum(x, 1))


def _cluster(groups_N: NDArray[np.integer], items: list[Nested]) -> Nested:
    """Merge the pair of least loss until one is left. Ties: the lowest indices, so it is deterministic."""
    G, items = len(items), list(items)
    pairs = np.bincount(groups_N[1:].astype(np.int64) * G + groups_N[:-1], minlength=G * G)
    before_GG = pairs.reshape(G, G).astype(np.float64)
    weight_G = np.bincount(groups_N, minlength=G) + 0.5
    own_G = _xlogx(before_GG).sum(1) - _xlogx(weight_G)

    def losses(i: int) -> Floats:
        merged = _xlogx(before_GG[i] + before_GG).sum(1) - _xlogx(weight_G[i] + weight_G)
        return own_G[i] + own_G - merged

    loss_GG = np.stack([losses(i) for i in range(G)])
    np.fill_diagonal(loss_GG, np.inf)
    merged_G = np.zeros(G, bool)
    for _ in range(G - 1):
        i, j = sorted(divmod(int(loss_GG.argmin()), G))
        items[i] = (items[i], items[j])
        before_GG[i] += before_GG[j]
        weight_G[i] += weight_G[j]
        own_G[i] = _xlogx(before_GG[i]).sum() - _xlogx(weight_G[i])
        merged_G[j] = True
        loss_GG[i] = np.where(merged_G, np.inf, losses(i))
        loss_GG[i, i] = np.inf
        loss_GG[:, i] = loss_GG[i]
        loss_GG[j] = loss_GG[:, j] = np.inf
    return items[0]


def _flatten(tree: Nested, vocab_size: int) -> CodeTree:
    rank_V, left_V, right_V = (np.zeros(vocab_size, np.int32) for _ in range(3))

    def place(tree: Nested, rank: int) -> tuple[int, int]:
        """Number the leaves from ``rank`` on. Returns the node and the next rank."""
        if isinstance(tree, int):
            rank_V[tree] = rank
            return 0, rank + 1
        left, middle = place(tree[0], rank)
        right, end = place(tree[1], middle)
        left_V[middle], right_V[middle] = left, right
        return middle, end

    place(tree, 0)
    return CodeTree(rank_V, left_V, right_V)
