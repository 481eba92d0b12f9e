"""Large splits part by part: nothing is left out, and each part is like the whole."""

from __future__ import annotations

import numpy as np
import pytest

from makemore.corpus.loader import OrderedLoader, PackedLoader, ShuffledLoader
from makemore.corpus.shards import Shards
from makemore.types import IGNORE_INDEX, Split


def numbered(lengths: list[int]) -> Split:
    counts = np.array(lengths)
    return Split("train", np.arange(1, counts.sum() + 1), np.cumsum(counts) - counts, counts, counts)


SPLITS = {
    "text": numbered([5000]),
    "lines": numbered([7, 3, 9, 1, 12] * 160),
    "both": numbered([900, 4, 2000]),
}


def of_one_epoch(loader) -> list[int]:
    seen = []
    while True:
        before = loader.state_dict()
        batch = loader.next()
        if loader.epoch:
            loader.load_state_dict(before)
            return seen
        seen += batch.targets_BT[batch.targets_BT != IGNORE_INDEX].tolist()


@pytest.mark.parametrize("kind", SPLITS)
def test_parts_are_disjoint_and_complete(kind):
    shards = Shards(SPLITS[kind], seed=1, size=700, stretch=64)
    assert shards.count > 3
    for epoch in range(2):
        parts = [shards.take(epoch, nth)[0] for nth in range(shards.count)]
        covered = [np.arange(a, b) for part in parts for a, b in zip(part.begin, part.end, strict=True)]
        assert sorted(np.concatenate(covered)) == list(range(len(SPLITS[kind].tokens_N)))
        for part in parts:
            assert (part.end - part.begin).sum() < 3000
            assert (part.floor <= part.begin).all()
            assert np.isin(part.floor, SPLITS[kind].starts_D).all()


def test_a_part_of_a_text_is_from_all_over_it():
    part = Shards(SPLITS["text"], seed=1, size=700, stretch=64).take(0, 0)[0]
    assert np.ptp(part.begin) > 2500
    assert np.ptp(np.diff(np.sort(part.begin))) > 0


def test_epochs_differ():
    shards = Shards(SPLITS["text"], seed=1, size=700, stretch=64)
    assert shards.take(0, 0)[0].begin.tolist() != shards.take(1, 0)[0].begin.tolist()


@pytest.mark.parametrize("kind", SPLITS)
@pytest.mark.parametrize("packed", [False, True])
def test_loaders_visit_nearly_everything_once_an_epoch(kind, packed):
    split = SPLITS[kind]
    shards = Shards(split, seed=2, size=700, stretch=64)
    loader = (
        PackedLoader(split, 0, 64, 16, 2, shards)
        if packed
        else ShuffledLoader(split, 0, 64, 16, 4, 2, shards)
    )
    seen = of_one_epoch(loader)
    assert len(set(seen)) > 0.75 * len(split.tokens_N)
    # Pieces of a long document are moved inwards at its ends, and may overlap there.
    assert len(seen) < 1.3 * len(split.tokens_N)
    again = set(seen)
    while loader.epoch < 6:
        batch = loader.next()
        again |= set(batch.targets_BT[batch.targets_BT != IGNORE_INDEX].tolist())
    assert again == set(split.tokens_N.tolist())


@pytest.mark.parametrize("kind", SPLITS)
@pytest.mark.parametrize("name", ["shuffled", "packed", "ordered"])
def test_a_place_in_mid_part_is_found_again(kind, name):
    split = SPLITS[kind]

    def fresh():
        shards = Shards(split, seed=2, size=700, stretch=64)
        if name == "ordered":
            return OrderedLoader(split, 0, 64, group_tokens=700)
        if name == "packed":
            return PackedLoader(split, 0, 64, 16, 2, shards)
        return ShuffledLoader(split, 0, 64, 16, 4, 2, shards)

    loader, other = fresh(), fresh()
    for _ in range(25):
        loader.next()
    other.load_state_dict(loader.state_dict())
    for _ in range(15):
        a, b = loader.next(), other.next()
        assert (a.inputs_BT == b.inputs_BT).all()
        assert (a.targets_BT == b.targets_BT).all()
        assert a.continues == b.continues


@pytest.mark.parametrize("kind", SPLITS)
def test_counting_in_groups_sees_everything_once(kind):
    seen: list[int] = []
    for batch in OrderedLoader(SPLITS[kind], 0, 64, group_tokens=500):
        seen += batch.targets_BT[batch.targets_BT != IGNORE_INDEX].tolist()
    assert sorted(seen) == SPLITS[kind].tokens_N.tolist()
