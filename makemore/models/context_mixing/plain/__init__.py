"""The C code of context mixing in Python: the reference it is tested against, used without a compiler.

Files and functions have the names of the C code's, and do the same, up to rounding.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from makemore.models.context_mixing import memory
from makemore.models.context_mixing.engine_base import Engine, Rates
from makemore.models.context_mixing.memory import (
    CONTEXTS,
    MATCH_LENGTHS,
    N_CONTEXTS,
    N_ORDERS,
    POSITION,
    RECENT,
)
from makemore.models.context_mixing.plain.mixing import LONGER, Decision, Mixing, Situation
from makemore.models.context_mixing.plain.position import Words, combine, context_hashes, push
from makemore.models.context_mixing.plain.table import Item, Table
from makemore.types import Floats, Floats32, Ints

_MATCH_LEVELS = (8, 12, 16, 24, 32, 100)
_W1, _F3 = CONTEXTS.index("W1"), CONTEXTS.index("F3")


class Walk(NamedTuple):
    """A position's contexts, looked up."""

    hashes: list[int]
    slots: list[int]
    evidence: list[list[Item]]
    situation: Situation
    is_start: bool


class PlainEngine(Engine):
    """Context mixing in Python."""

    def __init__(self, arrays: memory.Arrays, boundary_id: int) -> None:
        self.arrays, self.boundary = arrays, boundary_id
        self.tree = memory.tree_of(arrays, boundary_id)
        self.table, self.mixing = Table(arrays), Mixing(arrays)
        self.tokens_V = np.argsort(arrays["rank_V"])
        self.children = (arrays["left_V"], arrays["right_V"])

    def read(
        self,
        position: Ints,
        inputs_N: Ints,
        targets_N: Ints,
        rates: Rates | None,
        counts: bool,
        logits_NV: Floats32 | None = None,
    ) -> Floats:
        p, nats_N = position.view(np.uint64), np.zeros(len(inputs_N))
        if rates is not None:
            self.mixing.lr, self.mixing.apm_lr = rates
        for i, (token, target) in enumerate(zip(inputs_N.tolist(), targets_N.tolist(), strict=True)):
            self._push(p, token)
            if counts:
                self._remember(p, token)
            starts = token == self.boundary or not self.arrays["counters"][memory.HAS_BOUNDARY]
            if target < 0 or (target == self.boundary and starts):
                nats_N[i] = 0 if target < 0 else math.inf
                continue
            walk, rank = self._look_up(p), int(self.arrays["rank_V"][target])
            if logits_NV is not None:
                self._fill(walk, logits_NV[i])
            nats_N[i] = self._code(walk, rank, learns=rates is not None)
            if counts:
                self._count_token(walk, rank)
        return nats_N

    def distributions(self, tokens_BT: Ints, positions_BP: Ints) -> Floats32:
        logits_BTV = np.empty((*tokens_BT.shape, len(self.tokens_V)), np.float32)
        for row, (tokens_T, position) in enumerate(zip(tokens_BT.tolist(), positions_BP, strict=True)):
            for t, token in enumerate(tokens_T):
                self._push(position.view(np.uint64), token)
                self._fill(self._look_up(position.view(np.uint64)), logits_BTV[row, t])
        return logits_BTV

    def _fill(self, walk: Walk, logits_V: Floats32) -> None:
        self._distribute(walk, self.tree.root, (0, len(self.tokens_V)), 0, walk.evidence, 0.0, logits_V)

    def sample(self, positions_BP: Ints, uniform_B: Floats) -> Ints:
        ids_B = np.empty(len(positions_BP), np.int64)
        for row, u in enumerate(uniform_B.tolist()):
            p = positions_BP[row].view(np.uint64)
            walk = self._look_up(p)
            node, span, depth, below = self.tree.root, (0, len(self.tokens_V)), 0, walk.evidence
            while span[1] - span[0] > 1:
                left = 1 - self._decide(walk, node, depth, below, span)[0]
                bit = int(u >= left)
                u = (u - left) / (1 - left) if bit else u / left
                below, span, node = self._descend(node, span, below, bit)
                depth += 1
            ids_B[row] = self.tokens_V[span[0]]
            self._push(p, int(ids_B[row]))
        return ids_B

    def _push(self, p: Words, token: int) -> None:
        push(p, token, self.boundary, self.arrays["kinds_V"], self.arrays["folded_V"])
        self._follow_matches(p)

    def _match_slot(self, p: Words, k: int) -> int:
        hash_ = k
        for token in p[: MATCH_LENGTHS[k]].tolist():
            hash_ = combine(hash_, token)
        return hash_ % self.arrays["match_table"].shape[1]

    def _follow_matches(self, p: Words) -> None:
        history, n = self.arrays["history"], int(self.arrays["counters"][memory.N_HISTORY])
        mask = len(history) - 1
        for k, needed in enumerate(MATCH_LENGTHS):
            at, length = int(p[POSITION.match + k]), int(p[POSITION.match_length + k])
            if length and n - at <= len(history) and at < n and history[at & mask] == p[0]:
                p[POSITION.match + k], p[POSITION.match_length + k] = at + 1, length + 1
                continue
            p[POSITION.match_length + k] = 0
            if p[needed - 1] == self.boundary:
                continue
            at, length = int(self.arrays["match_table"][k, self._match_slot(p, k)]), 0
            if at <= 0 or n - at > len(history) - RECENT:
                continue
            while length < min(RECENT, at) and p[length] not in (self.boundary,):
                if history[(at - 1 - length) & mask] != p[length]:
                    break
                length += 1
            if length >= needed:
                p[POSITION.match + k], p[POSITION.match_length + k] = at, length

    def _remember(self, p: Words, token: int) -> None:
        history, counters = self.arrays["history"], self.arrays["counters"]
        history[counters[memory.N_HISTORY] & (len(history) - 1)] = token
        counters[memory.N_HISTORY] += 1
        for k, needed in enumerate(MATCH_LENGTHS):
            if p[needed - 1] != self.boundary:
                self.arrays["match_table"][k, self._match_slot(p, k)] = counters[memory.N_HISTORY]

    def _look_up(self, p: Words) -> Walk:
        hashes = [combine(hash_, c) for c, hash_ in enumerate(context_hashes(p))]
        hashes = [combine(hash_ ^ hash_ >> 29, 0) for hash_ in hashes]
        slots = [self.table.find(hash_) for hash_ in hashes]
        evidence = [self.table.load(slot) for slot in slots]
        return Walk(hashes, slots, evidence, self._situation(p, hashes, evidence), int(p[0]) == self.boundary)

    def _situation(self, p: Words, hashes: list[int], evidence: list[list[Item]]) -> Situation:
        def known(first: int, n: int) -> int:
            return next((i for i in range(n) if not evidence[first + i]), n)

        history, n = self.arrays["history"], int(self.arrays["counters"][memory.N_HISTORY])
        expected, levels, match = [], [], 0
        for k in range(memory.N_MATCHES):
            at, length = int(p[POSITION.match + k]), int(p[POSITION.match_length + k])
            is_known = length and at < n and n - at <= len(history)
            expected.append(int(self.arrays["rank_V"][history[at & (len(history) - 1)]]) if is_known else -1)
            levels.append(_match_level(length))
            if is_known:
                match = max(match, 1 + sum(length >= level for level in _MATCH_LEVELS))
        order, words, folded = known(0, N_ORDERS), known(_W1, 3), known(_F3, 3)
        last = evidence[order - 1] if order else []
        of_words = evidence[_W1 + words - 1] if words else []
        confidence = min(last[0].n, 3) if len(last) == 1 else 0
        t1, t2 = int(p[0]), int(p[1])
        length = min(int(p[POSITION.word_length]), 7)
        n_after_word = min(len(evidence[_W1]), 7)
        selectors = [
            *(match, order, t1, (order * 4 + confidence) * 8 + n_after_word, t1 * len(self.tokens_V) + t2),
            *(length * 2 + int(p[POSITION.is_capital]), folded * 4 + words, int(p[POSITION.kinds]) & 511),
            *(items[0].rank + 1 if items else 0 for items in (last, of_words)),
        ]
        return Situation(
            selectors=selectors,
            order=order,
            apm_hashes=[combine(1, t1), combine(combine(2, t1), t2), combine(3, hashes[_W1])],
            expected=expected,
            match_levels=levels,
        )

    def _decide(
        self, walk: Walk, node: int, depth: int, below: list[list[Item]], span: tuple[int, int]
    ) -> tuple[float, Decision | None]:
        """Probability of the right child; without a decision if only one child is possible."""
        can_end = self.arrays["counters"][memory.HAS_BOUNDARY] and not walk.is_start
        if node == self.tree.boundary_node and not can_end:
            return 1.0 - self.tree.boundary_side, None
        return self.mixing.decide(node, depth, below, span, walk.situation)

    def _descend(
        self, node: int, span: tuple[int, int], below: list[list[Item]], bit: int
    ) -> tuple[list[list[Item]], tuple[int, int], int]:
        below = [[item for item in items if (item.rank >= node) == bool(bit)] for items in below]
        return below, (node, span[1]) if bit else (span[0], node), int(self.children[bit][node])

    def _code(self, walk: Walk, rank: int, learns: bool) -> float:
        """Nats of a rank."""
        node, span, depth, below, nats = self.tree.root, (0, len(self.tokens_V)), 0, walk.evidence, 0.0
        while span[1] - span[0] > 1:
            bit = int(rank >= node)
            p, decision = self._decide(walk, node, depth, below, span)
            nats -= math.log(p if bit else 1 - p)
            if learns and decision is not None:
                self.mixing.learn(decision, bit, walk.situation.order)
            below, span, node = self._descend(node, span, below, bit)
            depth += 1
        return nats

    def _distribute(
        self,
        walk: Walk,
        node: int,
        span: tuple[int, int],
        depth: int,
        below: list[list[Item]],
        log_p: float,
        logits_V: Floats32,
    ) -> None:
        if span[1] - span[0] == 1:
            logits_V[self.tokens_V[span[0]]] = log_p
            return
        p, _ = self._decide(walk, node, depth, below, span)
        for bit, share in enumerate((1 - p, p)):
            log_share = math.log(share) if share else -math.inf
            child_below, child_span, child = self._descend(node, span, below, bit)
            self._distribute(walk, child, child_span, depth + 1, child_below, log_p + log_share, logits_V)

    def _count_token(self, walk: Walk, rank: int) -> None:
        is_new = [False] * N_CONTEXTS
        for c in reversed(range(N_CONTEXTS)):
            new_in_longer = c in LONGER and is_new[LONGER[c]]
            is_new[c] = self.table.count(walk.hashes[c], walk.slots[c], rank, new_in_longer)


def _match_level(length: int) -> int:
    if length < 16:
        return length
    if length < 32:
        return 16 + (length - 16) // 2 if length < 24 else 20 + (length - 24) // 4
    return 22 + (length > 63) + (length > 127) + (length > 400)
