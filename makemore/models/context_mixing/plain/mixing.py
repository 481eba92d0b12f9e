"""One binary decision, as in ``mixing.h``: evidence -> inputs -> mixer -> final probability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from makemore.models.context_mixing import memory
from makemore.models.context_mixing.memory import CONTEXTS, N_CONTEXTS, N_INPUTS, N_ORDERS
from makemore.models.context_mixing.plain.position import combine
from makemore.models.context_mixing.plain.table import Item
from makemore.types import Floats32

_INDEX = {name: i for i, name in enumerate(CONTEXTS)}
_LINKS = {f"O{n + 1}": f"O{n}" for n in range(1, 8)} | {"W2": "W1", "W3": "W2", "F5": "F3", "F7": "F5"}
LONGER = {_INDEX[short]: _INDEX[long] for long, short in _LINKS.items()}
"""The context that is longer by a token or word, in which a continuation may be new."""
SHORTER = (
    dict.fromkeys(range(N_CONTEXTS), _INDEX["O3"])
    | {long: short for short, long in LONGER.items()}
    | {_INDEX["O10"]: _INDEX["O8"], _INDEX["O12"]: _INDEX["O10"]}
    | {_INDEX[name]: -1 for name in ("O1", "W1", "F3")}
)
"""The context that a context's counts are interpolated with; -1: the node's probability."""
CELL_LIMIT, LOWER_SHARE, JOINT_SHARE = 1023, 0.7, 0.6
MATCH_INPUT = 3 * N_CONTEXTS + N_ORDERS + 1


@dataclass(kw_only=True)
class Situation:
    """What selects the weights, and the matches' predictions; the same for a whole walk down the tree."""

    selectors: list[int]
    order: int
    apm_hashes: list[int]
    expected: list[int]
    """Rank that each match predicts, or -1."""
    match_levels: list[int]


@dataclass(kw_only=True)
class Decision:
    """The inputs of a node, and what learning needs."""

    node: int
    depth: int
    inputs: Floats32
    cells: list[tuple[int, bool]]
    """Cells and whether they predict 0 in place of 1."""
    rows: list[int]
    logits: Floats32
    finals: tuple[float, float]
    bins: list[tuple[int, int]]
    fraction: float


def logistic(x: Any) -> Any:
    """The probability of a logit."""
    return 1 / (1 + np.exp(-x))


class Mixing:
    """The weights and adaptive probabilities of a model."""

    def __init__(self, arrays: memory.Arrays) -> None:
        self.arrays = arrays
        self.vocab_size = len(arrays["rank_V"])
        sizes = memory.set_rows(self.vocab_size)
        self.sizes, self.first_rows = np.array(sizes), np.cumsum([0, *sizes[:-1]])
        self.lr = self.apm_lr = 0.0

    def decide(
        self, node: int, depth: int, below: list[list[Item]], span: tuple[int, int], situation: Situation
    ) -> tuple[float, Decision]:
        """The probability of the right child. ``below``: evidence of each context below the node."""
        inputs = np.zeros(N_INPUTS, np.float32)
        cells: list[tuple[int, tuple[int, bool]]] = []
        depth3 = min((depth + 1) // 2, 2)
        self._context_inputs(inputs, cells, node, depth3, below)
        learned = self.arrays["cells"]
        for i, (cell, _) in cells:
            inputs[i] = learned[cell, 2]
        inputs[MATCH_INPUT - 1] = self.arrays["node_cells"][node, 2]
        expects = 0
        for k, rank in enumerate(situation.expected):
            if span[0] <= rank < span[1]:
                cell = (
                    memory.FIRST_MATCH
                    + k * memory.MATCH_CELLS
                    + situation.match_levels[k] * 4
                    + min(depth, 3)
                )
                bit = rank >= node
                inputs[MATCH_INPUT + k] = learned[cell, 2] * (1 if bit else -1)
                cells.append((MATCH_INPUT + k, (cell, not bit)))
                expects = 1 + int(bit)
        inputs[MATCH_INPUT + memory.N_MATCHES] = 0.5
        return self._mix(node, depth, span, inputs, [cell for _, cell in cells], expects, situation)

    def _context_inputs(
        self,
        inputs: Floats32,
        cells: list[tuple[int, tuple[int, bool]]],
        node: int,
        depth3: int,
        below: list[list[Item]],
    ) -> None:
        p_node = float(self.arrays["node_cells"][node, 0])
        lower: list[float] = []
        for c, items in enumerate(below):
            p = p_lower = p_node if SHORTER[c] < 0 else lower[SHORTER[c]]
            if items:
                n = [sum(x.n for x in items if (x.rank >= node) == bool(side)) for side in (0, 1)]
                new = [sum(x.c for x in items if (x.rank >= node) == bool(side)) for side in (0, 1)]
                recent = [sum(x.recent for x in items if (x.rank >= node) == bool(side)) for side in (0, 1)]
                rest = LOWER_SHARE * len(items)
                p = (n[1] + rest * p_lower) / (sum(n) + rest)
                p_lower = (new[1] + rest * p_lower) / (sum(new) + rest) if c in LONGER else p
                if c < N_ORDERS:
                    odds = _log_of(n[1]) - _log_of(n[0])
                    inputs[3 * N_CONTEXTS + c] = odds * min(sum(n) / 15, 1)
                levels = [_level_of(k) for k in n]
                at = (depth3 * memory.LEVELS + levels[0]) * memory.LEVELS + levels[1]
                cells.append((c, (c * memory.COUNT_CELLS + at, False)))
                levels = [int(memory.REST_LEVELS[min(k, 80)]) for k in recent]
                at = (depth3 * memory.RECENT_LEVELS + levels[0]) * memory.RECENT_LEVELS + levels[1]
                at = at * 2 + int(items[0].rank >= node)
                cells.append(
                    (2 * N_CONTEXTS + c, (memory.FIRST_RECENT + c * memory.RECENT_CELLS + at, False))
                )
            lower.append(p_lower)
            p = min(max(p, 1e-4), 1 - 1e-4)
            inputs[N_CONTEXTS + c] = np.log(p / (1 - p))

    def _mix(
        self,
        node: int,
        depth: int,
        span: tuple[int, int],
        inputs: Floats32,
        cells: list[tuple[int, bool]],
        expects: int,
        situation: Situation,
    ) -> tuple[float, Decision]:
        s, V, d4 = situation.selectors, self.vocab_size, min(depth, 3)
        rows = np.array(
            [
                (s[0] * 3 + expects) * 4 + d4,
                *(s[1] * V + node, s[2] * V + node, s[3] * 4 + d4),
                *(s[4], s[5] * V + node, s[6] * V + node, s[7] * 4 + d4),
                *((s[i] * 3 + _side(node, span, s[i] - 1)) * 4 + d4 for i in (8, 9)),
            ]
        )
        rows = rows % self.sizes + self.first_rows
        logits = np.clip(self.arrays["weights"][rows] @ inputs, -18, 18)
        a = float(self.arrays["by_node"][node] @ logits)
        b = float(self.arrays["by_order"][situation.order * 4 + d4] @ logits)
        mean = (a + b) / 2
        at = min(max(mean, -10.9), 10.9) + 11
        low, fraction = int(at), at - int(at)
        p, bins = 2 * float(logistic(mean)), []
        for i, hash_ in enumerate(situation.apm_hashes):
            row = combine(hash_, node) >> 20 & (memory.APM_ROWS - 1)
            curve = self.arrays["apms"][i, row]
            p += float(curve[low] * (1 - fraction) + curve[low + 1] * fraction) * (0.5 if i else 1)
            bins.append((row, low))
        p = min(max(p / 4, 1e-6), 1 - 1e-6)
        decision = Decision(
            node=node,
            depth=depth,
            inputs=inputs,
            cells=cells,
            rows=rows.tolist(),
            logits=logits,
            finals=(a, b),
            bins=bins,
            fraction=fraction,
        )
        return p, decision

    def learn(self, d: Decision, bit: int, order: int) -> None:
        """Move weights and adaptive probabilities towards the bit."""
        joint_error = bit - float(logistic(sum(d.finals) / 2))
        errors = (1 - JOINT_SHARE) * (bit - logistic(d.logits)) + JOINT_SHARE * joint_error
        by_order = self.arrays["by_order"][order * 4 + min(d.depth, 3)]
        for weights, final in zip((self.arrays["by_node"][d.node], by_order), d.finals, strict=True):
            weights += (bit - float(logistic(final))) * self.lr * d.logits
        for row, error in zip(d.rows, errors, strict=True):
            self.arrays["weights"][row] += self.lr * error * d.inputs
        for i, (row, low) in enumerate(d.bins):
            curve = self.arrays["apms"][i, row]
            curve[low] += (bit - curve[low]) * self.apm_lr * (1 - d.fraction)
            curve[low + 1] += (bit - curve[low + 1]) * self.apm_lr * d.fraction
        _learn_cell(self.arrays["node_cells"][d.node], bit)
        for cell, is_inverted in d.cells:
            _learn_cell(self.arrays["cells"][cell], bit ^ is_inverted)


def _learn_cell(cell: Floats32, bit: int) -> None:
    p = float(cell[0]) + (bit - float(cell[0])) / (float(cell[1]) + 1.5)
    p = min(max(p, 1e-4), 1 - 1e-4)
    cell[:3] = p, cell[1] + (cell[1] < CELL_LIMIT), np.log(p / (1 - p))


def _side(node: int, span: tuple[int, int], rank: int) -> int:
    """0: the rank isn't below the node; 1: below its left child, 2: below its right one."""
    return 1 + (rank >= node) if span[0] <= rank < span[1] else 0


def _log_of(n: int) -> float:
    return float(memory.LOGS[min(n, memory.MAX_TABLED - 1)])


def _level_of(n: int) -> int:
    return int(memory.COUNT_LEVELS[n if n < memory.MAX_TABLED else memory.MAX_TABLED + (n >= 16384)])
