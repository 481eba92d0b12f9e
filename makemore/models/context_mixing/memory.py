"""Everything that context mixing learns, in flat arrays that C code and Python share."""

from __future__ import annotations

from itertools import accumulate
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from makemore.models.context_mixing.tree import code_tree
from makemore.types import Floats, Floats32, TokenTraits

Array = NDArray
Arrays = dict[str, NDArray]

ORDERS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12)
CONTEXTS = (
    *("O1", "O2", "O3", "O4", "O5", "O6", "O7", "O8", "O10", "O12"),
    *("W1", "W2", "W3", "W13", "WS", "F3", "F5", "F7", "S24", "S35", "S2"),
    *("LW", "LH", "LA", "LC", "LI", "LL"),
)
"""Orders, words, tokens without case, sparse contexts, and those of the line; see ``position.h``."""
N_CONTEXTS, N_ORDERS, N_MATCHES = len(CONTEXTS), len(ORDERS), 2
MATCH_LENGTHS = (5, 12)
RECENT, FOLDED, COLUMNS = 32, 8, 96
N_INPUTS = -(-(3 * N_CONTEXTS + N_ORDERS + 1 + N_MATCHES + 1) // 16) * 16
N_SETS, N_APMS, APM_ROWS, BINS = 10, 3, 1 << 12, 24
SLOTS, MAX_LIST, MAX_RECENT = 8, 256, 60
LEVELS, RECENT_LEVELS = 20, 14
COUNT_CELLS, RECENT_CELLS, MATCH_CELLS = 3 * LEVELS**2, 3 * RECENT_LEVELS**2 * 2, 32 * 4
N_CELLS = N_CONTEXTS * COUNT_CELLS + N_CONTEXTS * RECENT_CELLS + N_MATCHES * MATCH_CELLS
FIRST_RECENT = N_CONTEXTS * COUNT_CELLS
FIRST_MATCH = FIRST_RECENT + N_CONTEXTS * RECENT_CELLS

LISTS_USED, LAST_TARGET, N_HISTORY, N_READ, N_EXPECTED, HAS_BOUNDARY, N_COUNTERS = 0, 11, 12, 13, 14, 15, 16
"""Indices of counters; 1 to 9: first free list of each size."""
MAX_HISTORY = 1 << 24
MAX_TREE_TOKENS = 1 << 22
"""Number of tokens from the start of a text that the code tree is built from."""
BYTES_PER_TOKEN, BYTES_PER_ROOT = 104, 130_000
"""Memory of contexts: so many bytes per token of the text, for long texts this times its square root.
Half is for slots, and half, of which less is used, for lists."""

_LEVEL_STARTS = [*range(9), 12, 16, 24, 32, 48, 64, 128, 256, 1024, 4096, 16384]
_LEVEL_VALUES = [*range(8), 9, 13, 19, 27, 39, 55, 90, 180, 500, 2000, 8000, 30000]
_RECENT_STARTS = [*range(9), 12, 16, 24, 40, 80]
_RECENT_VALUES = [*range(8), 9, 13, 19, 30, 55, 100]
MAX_TABLED = 4096
LOGS = np.log(np.arange(MAX_TABLED) + 0.4).astype(np.float32)
COUNT_LEVELS = (np.searchsorted(_LEVEL_STARTS, [*range(MAX_TABLED), 4096, 16384], side="right") - 1).astype(
    np.uint8
)
"""Level of each count below 4,096; then of those below 16,384, and of all others."""
REST_LEVELS = (np.searchsorted(_RECENT_STARTS, np.arange(81), side="right") - 1).astype(np.uint8)
"""Level of each recent count below 80, and of all others."""


# fmt: off
_SIZES = {
    "recent": RECENT, "folded": FOLDED, "line": COLUMNS, "above": COLUMNS, "word": 1, "words": 3, "suffix": 1,
    "gap": 1, "word_length": 1, "column": 1, "indent": 1, "n_words": 1, "first": 1, "firsts": 2, "opening": 1,
    "heading": 1, "is_heading": 1, "kinds": 1, "is_capital": 1, "match": N_MATCHES, "match_length": N_MATCHES,
}
# fmt: on
"""Elements of each field of ``struct position``, in its order."""
POSITION = SimpleNamespace(**dict(zip(_SIZES, accumulate(_SIZES.values(), initial=0), strict=False)))
"""Where the fields of ``struct position`` begin in a row of the state, (POSITION_SIZE,) int64."""
POSITION_SIZE = sum(_SIZES.values())


class TreeFacts(NamedTuple):
    """Root of the code tree, and the node that decides between the boundary and other tokens."""

    root: int
    boundary_node: int
    boundary_side: int
    """1 if the boundary is the node's right child, else 0."""


def tree_of(arrays: Arrays, boundary_id: int) -> TreeFacts:
    """Facts about the code tree. Raises ValueError if the arrays aren't a tree."""
    rank_V, children = arrays["rank_V"], (arrays["left_V"].tolist(), arrays["right_V"].tolist())
    V = len(rank_V)
    roots = set(range(1, V)) - set(children[0]) - set(children[1])
    if len(roots) != 1 or not np.array_equal(np.sort(rank_V), np.arange(V)):
        raise ValueError("the code tree has no root, or not every token once")
    root, boundary_rank = roots.pop(), int(rank_V[boundary_id])
    stack, boundary_node, n_nodes = [(root, 0, V)], 0, 0
    while stack:
        node, low, high = stack.pop()
        n_nodes += 1
        if not low < node < high or n_nodes >= V:
            raise ValueError("the code tree's nodes don't divide the ranks")
        for side, (begin, end) in enumerate(((low, node), (node, high))):
            if end - begin > 1:
                stack.append((children[side][node], begin, end))
            elif begin == boundary_rank:
                boundary_node = node
    return TreeFacts(root, boundary_node, int(boundary_rank >= boundary_node))


def new_cells(p: Array, n: float) -> Floats32:
    """Adaptive probabilities (N, 4): p, the number of updates behind it, its logit, and a zero."""
    p = np.clip(p.ravel(), 1e-4, 1 - 1e-4)
    return np.stack([p, np.full_like(p, n), np.log(p / (1 - p)), np.zeros_like(p)], axis=1).astype(np.float32)


def _initial_cells() -> Floats32:
    """Cells that begin with what the counts alone would predict."""

    def from_counts(values: list[int]) -> Floats:
        n = np.array(values, np.float64)
        return (n + 0.4) / (n + n[:, None] + 0.8)

    counts = new_cells(np.tile(from_counts(_LEVEL_VALUES), (3 * N_CONTEXTS, 1, 1)), 6)
    recent = new_cells(np.tile(from_counts(_RECENT_VALUES)[..., None], (3 * N_CONTEXTS, 1, 1, 2)), 6)
    matches = new_cells(np.full(N_MATCHES * MATCH_CELLS, 0.75), 6)
    return np.concatenate([counts, recent, matches])


def set_rows(vocab_size: int) -> list[int]:
    """Number of weight vectors of each set. Tokens share some if the vocabulary is large."""
    pairs = min(vocab_size**2, 8192)
    by_token = min(vocab_size + 1, 1024) * 3 * 4
    rows = [8 * 3 * 4, 16 * vocab_size, pairs, 512 * 4, pairs, 16 * vocab_size, 16 * vocab_size, 512 * 4]
    return [*rows, by_token, by_token]


def context_bytes(n_tokens: int) -> int:
    """Memory for the contexts of a text: proportional to its length, for long texts to its square root."""
    return int(min(BYTES_PER_TOKEN * n_tokens, BYTES_PER_ROOT * n_tokens**0.5)) + (1 << 16)


def empty_arrays() -> dict[str, Array]:
    """Empty arrays, before the text is known."""
    dtypes = {
        **dict.fromkeys(("kinds_V",), np.uint8),
        **dict.fromkeys(("folded_V", "rank_V", "left_V", "right_V", "history", "match_table"), np.int32),
        **dict.fromkeys(("slots", "lists", "counters"), np.int64),
        **dict.fromkeys(("cells", "node_cells", "weights", "by_node", "by_order", "apms"), np.float32),
    }
    return {name: np.zeros(0, dtype) for name, dtype in dtypes.items()}


def text_arrays(tokens_N: Array, traits: TokenTraits, boundary_id: int) -> dict[str, Array]:
    """The arrays that depend on the vocabulary and on the text as a whole."""
    tree = code_tree(tokens_N[:MAX_TREE_TOKENS], len(traits.kinds_V))
    counters = np.zeros(N_COUNTERS, np.int64)
    counters[[LISTS_USED, N_EXPECTED]] = 1, len(tokens_N)
    counters[HAS_BOUNDARY] = bool((tokens_N[:MAX_TREE_TOKENS] == boundary_id).any())
    return {**traits._asdict(), **tree._asdict(), "counters": counters}


def learned_arrays(vocab_size: int, n_tokens: int, max_bytes: int) -> dict[str, Array]:
    """Initial values of the learned arrays for a text of ``n_tokens`` tokens."""
    size = max_bytes or context_bytes(n_tokens)
    n_slots = size // 2 // (8 * SLOTS) * SLOTS + SLOTS
    curve = 1 / (1 + np.exp(11 - np.arange(BINS, dtype=np.float64)))
    history = min(1 << max(int(n_tokens) + RECENT, 1).bit_length(), MAX_HISTORY)
    shape = (sum(set_rows(vocab_size)), N_INPUTS)
    return {
        "slots": np.zeros(n_slots, np.int64),
        "lists": np.zeros(lists_size(n_slots), np.int64),
        "history": np.zeros(history, np.int32),
        "match_table": np.zeros((N_MATCHES, min(max(n_tokens, 1 << 12), MAX_HISTORY)), np.int32),
        "cells": _initial_cells(),
        "node_cells": new_cells(np.full(vocab_size, 0.5), 0),
        "weights": np.full(shape, 0.02, np.float32),
        "by_node": np.full((vocab_size, N_SETS), 1 / N_SETS, np.float32),
        "by_order": np.full((4 * (len(ORDERS) + 1), N_SETS), 1 / N_SETS, np.float32),
        "apms": np.tile(curve.astype(np.float32), (N_APMS, APM_ROWS, 1)),
    }


def copied(arrays: Arrays) -> Arrays:
    """A copy with room for more lists, to continue counting."""
    copy = {name: array.copy() for name, array in arrays.items() if name != "lists"}
    copy["lists"] = np.zeros(len(arrays["lists"]) + lists_size(len(arrays["slots"])), np.int64)
    copy["lists"][: len(arrays["lists"])] = arrays["lists"]
    return copy


def with_all_sets(arrays: Arrays) -> Arrays:
    """Add sets of zero weights, which have no effect, to the arrays of an earlier version."""
    if not arrays["by_node"].size or (n_sets := arrays["by_node"].shape[1]) >= N_SETS:
        return arrays
    rows = sum(set_rows(len(arrays["rank_V"]))[n_sets:])
    columns = ((0, 0), (0, N_SETS - n_sets))
    added = {"weights": ((0, rows), (0, 0)), "by_node": columns, "by_order": columns}
    return {**arrays, **{name: np.pad(arrays[name], width) for name, width in added.items()}}


def lists_size(n_slots: int) -> int:
    """Number of 64-bit words for lists in a table of ``n_slots`` slots."""
    return n_slots + (1 << 15)


def validate(arrays: Arrays, vocab_size: int, boundary_id: int) -> None:
    """Raise ValueError if loaded arrays aren't of one model, so that C code never reads outside them."""
    if not len(arrays["rank_V"]):
        return
    V = vocab_size
    shapes = {
        **dict.fromkeys(("kinds_V", "folded_V", "rank_V", "left_V", "right_V"), (V,)),
        "counters": (N_COUNTERS,),
        "position": (POSITION_SIZE,),
    }
    is_trained = len(arrays["slots"]) > 0
    if is_trained:
        fixed = ("cells", "node_cells", "weights", "by_node", "by_order", "apms")
        learned = learned_arrays(V, 0, 1)
        shapes |= {name: learned[name].shape for name in fixed}
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{name} has shape {arrays[name].shape}, expected {shape}")
    tree_of(arrays, boundary_id)
    tokens = [arrays["folded_V"], arrays["history"], arrays["position"][: POSITION.line]]
    if any(t.size and not 0 <= t.min() <= t.max() < V for t in tokens) or arrays["kinds_V"].max() > 6:
        raise ValueError("tokens outside the vocabulary")
    position = arrays["position"]
    small = position[[POSITION.word_length, POSITION.column, POSITION.indent, POSITION.n_words]]
    flags = position[[POSITION.is_heading, POSITION.is_capital]]
    if small.min() < 0 or not set(flags.tolist()) <= {0, 1} or position[POSITION.match :].min() < 0:
        raise ValueError("an impossible position")
    if is_trained:
        _validate_contexts(arrays, V)


def _validate_contexts(arrays: Arrays, vocab_size: int) -> None:
    slots, lists, counters = arrays["slots"], arrays["lists"], arrays["counters"]
    history, matches = len(arrays["history"]), arrays["match_table"]
    if len(slots) % SLOTS or history & (history - 1) or matches.shape[:1] != (N_MATCHES,) or not matches.size:
        raise ValueError("arrays of impossible sizes")
    n_read = int(counters[N_HISTORY])
    if (
        not 1 <= counters[LISTS_USED] <= len(lists)
        or not 0 <= counters[LAST_TARGET] < vocab_size
        or n_read < 0
        or matches.min() < 0
        or matches.max() > n_read
    ):
        raise ValueError("counters outside their arrays")
    for name in ("cells", "node_cells"):
        if arrays[name].size and not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} aren't finite")
    for begin in range(0, len(slots), 1 << 20):
        part = slots[begin : begin + (1 << 20)]
        is_list = part >> 16 & 1 == 1
        ranks = part[~is_list] >> 17 & 0xFFFFF
        positions = part[is_list] >> 32 & 0xFFFFFFFF
        if (ranks >= vocab_size).any() or (positions >= len(lists)).any():
            raise ValueError("contexts outside the arrays")
        headers = lists[positions]
        sizes, classes = headers & 0xFFFFFFFF, headers >> 32
        if ((classes < 1) | (classes > 8) | (sizes < 1)).any():
            raise ValueError("lists of impossible sizes")
        if ((sizes > 1 << classes) | (positions + (1 << classes) >= counters[LISTS_USED])).any():
            raise ValueError("lists outside the array")
        entries = (
            np.repeat(positions + 1, sizes)
            + np.arange(sizes.sum())
            - np.repeat(np.cumsum(sizes) - sizes, sizes)
        )
        if (lists[entries] & 0xFFFFF >= vocab_size).any():
            raise ValueError("ranks outside the vocabulary")
    for size_class in range(1, 9):
        position, steps = int(counters[1 + size_class]), 0
        while position:
            if not 0 < position < counters[LISTS_USED] - (1 << size_class) or steps > len(lists):
                raise ValueError("free lists outside the array")
            position, steps = int(lists[position]), steps + 1
