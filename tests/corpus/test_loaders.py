"""Loaders: which targets they visit, batch shapes, and resuming from a saved state."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from makemore.corpus.loader import Batching, OrderedLoader, PackedLoader, ShuffledLoader, StreamLoader
from makemore.corpus.rows import MAX_EXACT_PIECES, Segments, eval_windows, shuffled_windows, to_batch
from makemore.types import IGNORE_INDEX, Split

sizes = st.lists(st.integers(1, 30), min_size=1, max_size=20)


def numbered(lengths: list[int], mode: str = "lines") -> Split:
    """Documents whose targets are numbered from 1, to identify each of them."""
    starts = np.cumsum([0, *lengths[:-1]])
    tokens = np.arange(1, sum(lengths) + 1)
    if mode == "lines":
        tokens[np.cumsum(lengths) - 1] = 0
    counts = np.array(lengths)
    return Split("train", tokens, starts, counts, counts)


def valid_targets(batch) -> list[int]:
    return batch.targets_BT[batch.targets_BT != IGNORE_INDEX].tolist()


def epoch(loader) -> list:
    batches = [loader.next()]
    while loader.cursor and loader.epoch == 0 and len(batches) < 10_000:
        before = loader.state_dict()
        batch = loader.next()
        if loader.epoch > before["epoch"]:
            break
        batches.append(batch)
    return batches


@given(sizes, st.integers(2, 12), st.data())
@settings(max_examples=200, deadline=None)
def test_eval_windows_score_every_target_exactly_once(lengths, length, data):
    overlap = data.draw(st.integers(0, length - 1))
    split = numbered(lengths, "text")
    rows = eval_windows(split, length, overlap)
    assert rows.lengths.max() <= length
    seen = np.concatenate([np.arange(a, b) for a, b in zip(rows.score_from, rows.end, strict=True)])
    assert sorted(seen) == list(range(len(split.tokens_N)))
    document = np.searchsorted(split.starts_D, rows.begin, side="right")
    assert (document == np.searchsorted(split.starts_D, rows.end - 1, side="right")).all()
    context = rows.score_from - rows.begin
    at_start = np.isin(rows.score_from, split.starts_D)
    assert (context[~at_start] == overlap).all()


@given(st.integers(2, 200), st.integers(1, 12), st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_inputs_are_the_previous_targets_after_a_boundary(length, block, prefix):
    split = numbered([length], "text")
    loader = ShuffledLoader(split, 0, Batching(24, block, 1), context_prefix=prefix)
    for batch in epoch(loader):
        for inputs, targets in zip(batch.inputs_BT.tolist(), batch.targets_BT.tolist(), strict=True):
            for i, target in enumerate(targets):
                if target != IGNORE_INDEX:
                    first = target - 1 in split.starts_D
                    assert inputs[i] == (0 if first else target - 1)
                    # A window's first scored target has a full context prefix, or the document's start.
                    depth = min(prefix, target - 1 - int(split.starts_D[split.starts_D <= target - 1].max()))
                    assert i >= depth


@pytest.mark.parametrize("kind", ["shuffled", "packed"])
@pytest.mark.parametrize("lengths", [[5, 3, 9, 1, 7] * 40, [2000], [40, 3, 100, 2]])
def test_one_epoch_visits_most_targets_and_six_visit_all(kind, lengths):
    split = numbered(lengths, "text")
    loader = (
        ShuffledLoader(split, 0, Batching(64, 16, 3), context_prefix=0)
        if kind == "shuffled"
        else PackedLoader(split, 0, Batching(64, 16, 3))
    )
    first = {t for batch in epoch(loader) for t in valid_targets(batch)}
    assert len(first) >= 0.6 * len(split.tokens_N)
    seen = set(first)
    while loader.epoch < 6:
        seen |= set(valid_targets(loader.next()))
    assert seen == set(split.tokens_N.tolist())


def test_packed_rows_hold_complete_documents_in_one_shape():
    rng = np.random.default_rng(0)
    split = numbered(rng.integers(2, 12, 500).tolist())
    loader = PackedLoader(split, 0, Batching(128, 32, 0))
    fill_fractions = []
    for batch in epoch(loader):
        assert batch.inputs_BT.shape == batch.targets_BT.shape == (4, 32)
        for inputs, targets in zip(batch.inputs_BT, batch.targets_BT, strict=True):
            valid = targets != IGNORE_INDEX
            fill_fractions.append(float(valid.float().mean()))
            end = int(valid.sum())
            assert valid[:end].all()
            assert int(inputs[0]) == 0  # a row begins with a document
            assert int(targets[end - 1]) == 0  # and ends with one
            next_inputs = inputs[1:end]
            assert (next_inputs == targets[: end - 1]).all()
    assert np.mean(fill_fractions) > 0.8


@pytest.mark.parametrize("truncation", ["regular", "random"])
def test_streams_continue_from_the_previous_batch(truncation):
    split = numbered([1000], "text")
    loader = StreamLoader(split, 0, Batching(64, 16, 0), truncation=truncation)
    last_targets = None
    lengths = set()
    for batch in epoch(loader):
        lengths.add(batch.inputs_BT.shape[1])
        if batch.continues:
            assert last_targets is not None
            assert (batch.inputs_BT[:, 0] == last_targets).all()
        last_targets = batch.targets_BT[:, -1]
    assert len(lengths) == 1 if truncation == "regular" else len(lengths) > 3
    assert max(lengths) <= 24
    seen = set()
    while loader.epoch < 8:
        seen |= set(valid_targets(loader.next()))
    assert len(seen) > 950


@given(sizes, st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_ordered_loader_yields_every_target_once(lengths, batch_tokens):
    split = numbered(lengths, "text")
    seen = [t for batch in OrderedLoader(split, 0, batch_tokens) for t in valid_targets(batch)]
    assert sorted(seen) == sorted(split.tokens_N.tolist())


@pytest.mark.parametrize("kind", ["shuffled", "packed", "streams", "ordered"])
def test_state_dict_resumes_at_the_next_batch(kind):
    split = numbered([5, 3, 9, 1, 7, 60] * 30, "text")

    def new_loader():
        return {
            "shuffled": lambda: ShuffledLoader(split, 0, Batching(64, 16, 3), context_prefix=2),
            "packed": lambda: PackedLoader(split, 0, Batching(64, 16, 3)),
            "streams": lambda: StreamLoader(split, 0, Batching(64, 16, 3)),
            "ordered": lambda: OrderedLoader(split, 0, 64),
        }[kind]()

    loader, other = new_loader(), new_loader()
    for _ in range(31 if kind != "ordered" else 5):
        loader.next()
    other.load_state_dict(loader.state_dict())
    for _ in range(10):
        a, b = loader.next(), other.next()
        assert (a.inputs_BT == b.inputs_BT).all()
        assert (a.targets_BT == b.targets_BT).all()
        assert a.continues == b.continues


def test_rows_of_different_lengths_are_padded_on_the_right():
    split = numbered([3, 5])
    rows = eval_windows(split, 8, 0)
    batch = to_batch(split, rows, 0)
    assert batch.inputs_BT.tolist() == [[0, 1, 2, 0, 0], [0, 4, 5, 6, 7]]
    ignored = IGNORE_INDEX
    assert batch.targets_BT.tolist() == [[1, 2, 0, ignored, ignored], [4, 5, 6, 7, 0]]


@given(st.lists(st.integers(1, 500), min_size=1, max_size=8), st.integers(1, 64), st.integers(0, 2**31))
@settings(max_examples=200, deadline=None)
def test_short_segments_are_cut_into_the_fewest_windows(lengths, length, seed):
    starts = np.cumsum([0, *lengths[:-1]])
    segments = Segments(starts, starts + lengths, starts)
    rows = shuffled_windows(segments, length, 0, np.random.default_rng(seed))
    counts = np.zeros(sum(lengths), np.int64)
    for begin, end in zip(rows.score_from, rows.end, strict=True):
        counts[begin:end] += 1
    assert counts.min() == 1
    for start, size in zip(starts, lengths, strict=True):
        n_pieces = -(-size // length)
        max_windows = n_pieces if n_pieces < MAX_EXACT_PIECES else n_pieces + 1
        assert ((rows.begin >= start) & (rows.begin < start + size)).sum() <= max_windows
