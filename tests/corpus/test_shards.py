"""Large splits in shards: they cover the split, and each shard samples the whole split."""

from __future__ import annotations

import numpy as np
import pytest

from makemore.corpus.loader import Batching, OrderedLoader, PackedLoader, ShuffledLoader
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


def targets_of_one_epoch(loader) -> list[int]:
    seen = []
    while True:
        before = loader.state_dict()
        batch = loader.next()
        if loader.epoch:
            loader.load_state_dict(before)
            return seen
        seen += batch.targets_BT[batch.targets_BT != IGNORE_INDEX].tolist()


@pytest.mark.parametrize("kind", SPLITS)
def test_shards_are_disjoint_and_complete(kind):
    shards = Shards(SPLITS[kind], seed=1, size=700, segment=64)
    assert shards.count > 3
    for epoch in range(2):
        parts = [shards.load(epoch, nth)[0] for nth in range(shards.count)]
        covered = [np.arange(a, b) for part in parts for a, b in zip(part.begin, part.end, strict=True)]
        assert sorted(np.concatenate(covered)) == list(range(len(SPLITS[kind].tokens_N)))
        for part in parts:
            assert (part.end - part.begin).sum() < 3000
            assert (part.floor <= part.begin).all()
            assert np.isin(part.floor, SPLITS[kind].starts_D).all()


def test_a_shard_samples_the_whole_text():
    part = Shards(SPLITS["text"], seed=1, size=700, segment=64).load(0, 0)[0]
    assert np.ptp(part.begin) > 2500
    assert np.ptp(np.diff(np.sort(part.begin))) > 0


def test_epochs_differ():
    shards = Shards(SPLITS["text"], seed=1, size=700, segment=64)
    assert shards.load(0, 0)[0].begin.tolist() != shards.load(1, 0)[0].begin.tolist()


@pytest.mark.parametrize("kind", SPLITS)
@pytest.mark.parametrize("packed", [False, True])
def test_loaders_visit_most_targets_once_per_epoch(kind, packed):
    split = SPLITS[kind]
    shards = Shards(split, seed=2, size=700, segment=64)
    loader = (
        PackedLoader(split, 0, Batching(64, 16, 2), shards=shards)
        if packed
        else ShuffledLoader(split, 0, Batching(64, 16, 2), context_prefix=4, shards=shards)
    )
    seen = targets_of_one_epoch(loader)
    assert len(set(seen)) > 0.75 * len(split.tokens_N)
    # Windows are shifted inwards at the ends of a long document and may overlap there.
    assert len(seen) < 1.3 * len(split.tokens_N)
    all_seen = set(seen)
    while loader.epoch < 6:
        batch = loader.next()
        all_seen |= set(batch.targets_BT[batch.targets_BT != IGNORE_INDEX].tolist())
    assert all_seen == set(split.tokens_N.tolist())


@pytest.mark.parametrize("kind", SPLITS)
@pytest.mark.parametrize("name", ["shuffled", "packed", "ordered"])
def test_state_dict_resumes_within_a_shard(kind, name):
    split = SPLITS[kind]

    def new_loader():
        shards = Shards(split, seed=2, size=700, segment=64)
        if name == "ordered":
            return OrderedLoader(split, 0, 64, group_tokens=700)
        if name == "packed":
            return PackedLoader(split, 0, Batching(64, 16, 2), shards=shards)
        return ShuffledLoader(split, 0, Batching(64, 16, 2), context_prefix=4, shards=shards)

    loader, other = new_loader(), new_loader()
    for _ in range(25):
        loader.next()
    other.load_state_dict(loader.state_dict())
    for _ in range(15):
        a, b = loader.next(), other.next()
        assert (a.inputs_BT == b.inputs_BT).all()
        assert (a.targets_BT == b.targets_BT).all()
        assert a.continues == b.continues


@pytest.mark.parametrize("kind", SPLITS)
def test_ordered_loader_in_groups_yields_every_target_once(kind):
    seen: list[int] = []
    for batch in OrderedLoader(SPLITS[kind], 0, 64, group_tokens=500):
        seen += batch.targets_BT[batch.targets_BT != IGNORE_INDEX].tolist()
    assert sorted(seen) == SPLITS[kind].tokens_N.tolist()
