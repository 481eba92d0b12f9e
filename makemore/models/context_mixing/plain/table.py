"""Counts of continuations by context, as in ``table.h``."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from makemore.models.context_mixing import memory

Words = NDArray[np.uint64]
MASK = (1 << 64) - 1


class Item(NamedTuple):
    """A continuation of a context: its rank, count, number of longer contexts, and recent count."""

    rank: int
    n: int
    c: int
    recent: int


class Table:
    """The hash table of contexts; layouts in bits are in ``table.h``."""

    def __init__(self, arrays: memory.Arrays) -> None:
        self.slots: Words = arrays["slots"].view(np.uint64)
        self.lists: Words = arrays["lists"].view(np.uint64)
        self.counters = arrays["counters"]

    def bucket(self, hash_: int) -> int:
        """Index of the first slot of a hash's bucket."""
        return memory.SLOTS * ((hash_ >> 32) * (len(self.slots) // memory.SLOTS) >> 32)

    def find(self, hash_: int) -> int:
        """Index of a context's slot, or -1."""
        begin, check = self.bucket(hash_), _check(hash_)
        for i in range(begin, begin + memory.SLOTS):
            if int(self.slots[i]) & 0xFFFF == check:
                return i
        return -1

    def load(self, slot: int) -> list[Item]:
        """What a context knows, last seen first."""
        if slot < 0:
            return []
        x = int(self.slots[slot])
        if not x >> 16 & 1:
            n = x >> 37 & 16383
            return [Item(x >> 17 & 0xFFFFF, n, x >> 51, min(n, memory.MAX_RECENT))]
        begin = (x >> 32) + 1
        entries = self.lists[begin : begin + (int(self.lists[begin - 1]) & 0xFFFFFFFF)].tolist()
        return [Item(e & 0xFFFFF, e >> 20 & 0xFFFF, e >> 36 & 0xFFFF, e >> 52 & 255) for e in entries]

    def count(self, hash_: int, slot: int, rank: int, is_new: bool) -> bool:
        """Count a rank in a context. Returns whether it is new here; ``is_new``: in the longer context."""
        if slot < 0 or int(self.slots[slot]) & 0xFFFF != _check(hash_):
            self._insert(hash_, rank, is_new)
            return True
        items, is_list = self.load(slot), int(self.slots[slot]) >> 16 & 1
        if not is_list and items[0].rank == rank:
            item = items[0]
            self.slots[slot] = _single(_check(hash_), rank, item.n + 1, item.c + is_new)
            return False
        if not is_list:
            begin = self._new_list(1)
            if not begin:
                return True
            self.slots[slot] = _check(hash_) | 1 << 16 | begin << 32
            self.lists[begin] = 1 << 32 | 1
        return self._count_in_list(slot, items, rank, is_new)

    def _insert(self, hash_: int, rank: int, is_new: bool) -> None:
        begin, lowest, best = self.bucket(hash_), MASK, -1
        for i in range(memory.SLOTS):
            slot = begin + (i + (hash_ >> 16)) % memory.SLOTS
            x = int(self.slots[slot])
            n = MASK if x >> 16 & 1 else x >> 37 & 16383
            if n < lowest:
                lowest, best = n, slot
        if best >= 0:
            self.slots[best] = _single(_check(hash_), rank, 1, int(is_new))

    def _new_list(self, log2_capacity: int) -> int:
        """Position of a new list; 0 if the memory is full."""
        begin, size = int(self.counters[1 + log2_capacity]), 1 + (1 << log2_capacity)
        if begin:
            self.counters[1 + log2_capacity] = int(self.lists[begin])
            return begin
        begin = int(self.counters[memory.LISTS_USED])
        if begin + size > len(self.lists):
            return 0
        self.counters[memory.LISTS_USED] += size
        return begin

    def _count_in_list(self, slot: int, items: list[Item], rank: int, is_new: bool) -> bool:
        begin = int(self.slots[slot]) >> 32
        log2_capacity = int(self.lists[begin]) >> 32
        old = next((item for item in items if item.rank == rank), Item(rank, 0, 0, 0))
        rest = [item for item in items if item.rank != rank]
        if old.n == 0 and len(items) == memory.MAX_LIST:
            rest.pop()
        elif old.n == 0 and len(items) == 1 << log2_capacity:
            larger = self._new_list(log2_capacity + 1)
            if not larger:
                return True
            self.lists[begin] = self.counters[1 + log2_capacity]
            self.counters[1 + log2_capacity] = begin
            self.slots[slot] = int(self.slots[slot]) & 0x1FFFF | larger << 32
            begin, log2_capacity = larger, log2_capacity + 1
        first = Item(rank, old.n + 1, old.c + is_new, min(old.recent + 1, memory.MAX_RECENT))
        faded = [x._replace(recent=(x.recent * 5 + 4) // 8 if x.recent > 2 else x.recent) for x in rest]
        items = [first, *faded]
        if first.n == 65535:
            items = [x._replace(n=(x.n + 1) // 2, c=(min(x.c, 65535) + 1) // 2) for x in items]
        self.lists[begin] = log2_capacity << 32 | len(items)
        words = [x.rank | x.n << 20 | min(x.c, 65535) << 36 | x.recent << 52 for x in items]
        self.lists[begin + 1 : begin + 1 + len(items)] = np.array(words, np.uint64)
        return old.n == 0


def _check(hash_: int) -> int:
    return hash_ & 0xFFFF or 1


def _single(check: int, rank: int, n: int, c: int) -> int:
    return check | rank << 17 | min(n, 16383) << 37 | min(c, 8191) << 51
