"""The count model against smoothing written with dictionaries, one n-gram at a time."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from makemore.models.count import Count
from makemore.models.ngrams import counter
from makemore.models.ngrams.builder import merge_tables
from makemore.models.ngrams.counter import count_ngrams
from makemore.models.ngrams.table import ABSENT, NgramTable
from makemore.models.smoothing import CountConfig, SmoothedNgrams, estimate_discounts
from makemore.types import IGNORE_INDEX, Batch

VOCAB = 6
Gram = tuple[int, ...]
Row = tuple[list[int], list[int]]
SMOOTHINGS = pytest.mark.parametrize("smoothing", ["kneser-ney", "additive", "recursive-additive"])


# --- the reference -------------------------------------------------------------------------------


def histories(row: Row, order: int) -> list[tuple[Gram, int]]:
    """Each target with up to order - 1 inputs before it, from the same document."""
    pairs: list[tuple[Gram, int]] = []
    history: Gram = ()
    for token, target in zip(*row, strict=True):
        history = (0,) if token == 0 else (*history, token)
        if target != IGNORE_INDEX:
            pairs.append((history[len(history) - min(len(history), order - 1) :], target))
    return pairs


class Reference:
    """Smoothed probabilities by recursion over dictionaries."""

    def __init__(self, rows: list[Row], config: CountConfig, vocab_size: int = VOCAB) -> None:
        self.config, self.vocab_size = config, vocab_size
        counts: list[Counter[Gram]] = [Counter() for _ in range(config.order + 1)]
        for row in rows:
            for history, target in histories(row, config.order):
                for n in range(len(history) + 1):
                    counts[n + 1][(*history[len(history) - n :], target)] += 1
        self.possible = set(range(vocab_size)) - ({0} if counts[1] and not counts[1][(0,)] else set())
        if config.smoothing == "kneser-ney":
            counts = self.continuation_counts(counts)
        self.discounts = self.estimate_all_discounts(counts)
        self.after: dict[Gram, dict[int, int]] = defaultdict(dict)
        for level in counts:
            for gram, count in level.items():
                if count:
                    self.after[gram[:-1]][gram[-1]] = count

    @staticmethod
    def continuation_counts(counts: list[Counter[Gram]]) -> list[Counter[Gram]]:
        lower: list[Counter[Gram]] = [Counter() for _ in counts]
        lower[-1] = counts[-1]
        for n in range(1, len(counts) - 1):
            for gram in counts[n + 1]:
                lower[n][gram[1:]] += 1
            for gram, count in counts[n].items():
                if n > 1 and gram[0] == 0:
                    lower[n][gram] = count
        return lower

    @staticmethod
    def estimate_all_discounts(counts: list[Counter[Gram]]) -> list[list[float]]:
        discounts, result = [0.0, 0.5, 1.0, 1.5], []
        for level in reversed(counts[1:]):
            n = [0] + [sum(c == k for c in level.values()) for k in (1, 2, 3, 4)]
            if n[1] and n[2]:
                y = n[1] / (n[1] + 2 * n[2])
                discounts = [0.0, y, y, y]
                if n[3] and n[4]:
                    full = [k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3)]
                    discounts = [0.0, *full] if min(full) > 0 else discounts
            result.append(discounts)
        return [[], *reversed(result)]

    def p(self, history: Gram, target: int) -> float:
        seen, alpha = self.after.get(history, {}), self.config.alpha
        total, count = sum(seen.values()), seen.get(target, 0)
        # A document isn't empty: after the boundary, the boundary has only the probability of its own counts.
        possible = self.possible - {0} if history == (0,) else self.possible
        if self.config.smoothing == "additive":
            prior = float(target in possible)
            if total + alpha == 0:
                return prior / len(possible)
            return (count + alpha * prior) / (total + alpha * len(possible))
        if not history:
            lower = (target in possible) / len(possible)
        elif target in possible:
            lower = self.p(history[1:], target) / (1 - self.p((), 0) if history == (0,) else 1)
        else:
            lower = 0.0
        if self.config.smoothing == "recursive-additive":
            return (count + alpha * lower) / (total + alpha) if total + alpha else lower
        if not total:
            return lower
        discounts = self.discounts[len(history) + 1]
        backoff_mass = sum(discounts[min(c, 3)] for c in seen.values())
        return (count - discounts[min(count, 3)] + backoff_mass * lower) / total


# --- text ----------------------------------------------------------------------------------------


def random_rows(n: int, seed: int = 0, ends: bool = True, boundary: bool = True) -> list[Row]:
    """Documents of skewed, correlated random tokens; ``ends``: the end of document is a target too."""
    rng = random.Random(seed)
    rows = []
    for _ in range(n):
        tokens = [0] if boundary else [rng.randrange(1, VOCAB)]
        for _ in range(rng.randrange(9)):
            tokens.append(1 + (tokens[-1] + min(int(rng.expovariate(0.9)), 8)) % (VOCAB - 1))
        rows.append((tokens, [*tokens[1:], 0 if ends else IGNORE_INDEX]))
    return rows


def batch_of(rows: list[Row], continues: bool = False) -> Batch:
    length = max(len(inputs) for inputs, _ in rows)
    inputs = [i + [0] * (length - len(i)) for i, _ in rows]
    targets = [t + [IGNORE_INDEX] * (length - len(t)) for _, t in rows]
    return Batch(torch.tensor(inputs), torch.tensor(targets), continues)


def stream_of(tokens: Tensor) -> Batch:
    """One row, starting at the boundary, with all tokens as targets."""
    return Batch(torch.cat([tokens.new_zeros(1), tokens[:-1]])[None], tokens[None])


def count_model(*batches: Batch, vocab_size: int = VOCAB, **settings: Any) -> Count:
    model = Count(CountConfig(**settings), vocab_size, 0).eval()
    for batch in batches:
        model.count_batch(batch)
    model.finish()
    return model


def mean_nats(model: Count, batch: Batch) -> float:
    logits, _ = model(batch.inputs_BT)
    scored = batch.targets_BT != IGNORE_INDEX
    return -logits[scored].double().gather(1, batch.targets_BT[scored][:, None]).mean().item()


def assert_same_table(a: NgramTable, b: NgramTable) -> None:
    assert a.sizes == b.sizes
    for n in range(1, a.order + 1):
        np.testing.assert_array_equal(a.keys(n), b.keys(n))
        np.testing.assert_array_equal(a.counts(n), b.counts(n))


# --- against the reference -----------------------------------------------------------------------


@SMOOTHINGS
@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize(("documents", "alpha"), [(1, 1.0), (12, 0.3), (400, 2.0)])
@pytest.mark.parametrize("ends", [True, False])
def test_probabilities_match_the_reference(
    smoothing: Any, order: int, documents: int, alpha: float, ends: bool
) -> None:
    rows = random_rows(documents, ends=ends)
    rows += random_rows(documents // 3, seed=1, boundary=False, ends=False)
    config = CountConfig(order=order, smoothing=smoothing, alpha=alpha)
    reference = Reference(rows, config)
    model = count_model(batch_of(rows), order=order, smoothing=smoothing, alpha=alpha)
    for row in random_rows(6, seed=2) + random_rows(3, seed=3, boundary=False):
        p_TV = model(torch.tensor([row[0]]))[0][0].double().exp()
        expected = [[reference.p(h, w) for w in range(VOCAB)] for h, _ in histories(row, order)]
        torch.testing.assert_close(p_TV, torch.tensor(expected).double(), atol=1e-6, rtol=1e-5)


def test_random_rows_cover_every_discount_fallback() -> None:
    """The test rows cover the full, single and default discount estimates."""
    discounts = [
        d for n in (1, 12, 400) for d in Reference(random_rows(n), CountConfig(order=5)).discounts[1:]
    ]
    assert any(len(set(d)) == 4 and d[1] != 0.5 for d in discounts)
    assert any(d[1] == d[2] for d in discounts)
    assert [0.0, 0.5, 1.0, 1.5] in discounts


def test_contexts_do_not_cross_a_boundary() -> None:
    rows = random_rows(200)
    joined = ([t for i, _ in rows for t in i], [t for _, ts in rows for t in ts])
    assert_same_table(count_model(batch_of(rows)).table, count_model(batch_of([joined])).table)


@SMOOTHINGS
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_probabilities_sum_to_one(smoothing: Any, alpha: float) -> None:
    config = CountConfig(order=4, smoothing=smoothing, alpha=alpha)
    model = count_model(batch_of(random_rows(60)), order=4, smoothing=smoothing, alpha=alpha)
    tokens_N = torch.randint(-1, VOCAB, (500,), generator=torch.Generator().manual_seed(0)).numpy()
    p_NV = SmoothedNgrams(model.table, config).dense(model.table.contexts(tokens_N))
    np.testing.assert_allclose(p_NV.sum(1)[tokens_N != ABSENT], 1.0, atol=1e-6)
    assert (p_NV >= 0).all()


def discounts_of(counts: np.ndarray, fallback: np.ndarray) -> np.ndarray:
    return estimate_discounts(np.bincount(counts, minlength=5)[1:5], fallback)


def test_discounts_of_known_counts_of_counts() -> None:
    counts = np.array([0] * 9 + [1] * 40 + [2] * 20 + [3] * 10 + [4] * 5 + [7] * 30)
    y = 40 / (40 + 2 * 20)
    expected = [1 - 2 * y * 20 / 40, 2 - 3 * y * 10 / 20, 3 - 4 * y * 5 / 10]
    fallback = np.array([0.1, 0.2, 0.3])
    np.testing.assert_allclose(discounts_of(counts, fallback), expected)
    np.testing.assert_allclose(discounts_of(counts[counts != 4], fallback), [y] * 3)
    # Many more counts of 3 than of 2 would make the second discount negative.
    skewed = np.append(counts, [3] * 60)
    np.testing.assert_allclose(discounts_of(skewed, fallback), [y] * 3)
    for incomplete in (counts[counts != 1], counts[counts != 2], counts[:0]):
        assert discounts_of(incomplete, fallback) is fallback


SETTINGS_OF_IMPOSSIBLE = pytest.mark.parametrize(
    ("smoothing", "alpha"),
    [("kneser-ney", 1.0), ("additive", 0.5), ("recursive-additive", 0.5), ("recursive-additive", 0.0)],
)


@SETTINGS_OF_IMPOSSIBLE
def test_the_boundary_has_no_probability_where_it_cannot_come(smoothing: Any, alpha: float) -> None:
    """Documents aren't empty; a running text's end isn't a target. The other tokens share its part."""
    rows = [row for row in random_rows(60) if len(row[0]) > 1]
    running = [(inputs, [*targets[:-1], IGNORE_INDEX]) for inputs, targets in rows]
    settings = {"order": 4, "smoothing": smoothing, "alpha": alpha}
    for kind, batch in (("lines", batch_of(rows)), ("text", batch_of(running))):
        p_TV = count_model(batch, **settings)(torch.tensor([[0, 1, 2, 5]]))[0][0].double().exp()
        impossible = p_TV[0, 0] if kind == "lines" else p_TV[:, 0]
        assert (impossible == 0).all()
        torch.testing.assert_close(p_TV.sum(-1), torch.ones(4).double(), atol=1e-6, rtol=0)


def test_the_order_chosen_for_lines_sees_where_a_line_begins() -> None:
    letters = [([0, 1 + i % 5], [1 + i % 5, 0]) for i in range(5)]
    model = Count(CountConfig(order=0, max_order=4), VOCAB, 0)
    model.count_batch(batch_of(letters))
    model.finish([batch_of([([0, 5, 4, 3, 2, 1, 3, 2], [5, 4, 3, 2, 1, 3, 2, 0])])])
    assert model.order >= 2


# --- cases with known answers --------------------------------------------------------------------


def test_order_2_additive_matches_bigram_frequencies() -> None:
    rows = random_rows(50)
    N = torch.ones(VOCAB, VOCAB)
    N[0, 0] = 0  # documents aren't empty
    for inputs, targets in rows:
        for a, b in zip(inputs, targets, strict=True):
            N[a, b] += 1
    P = N / N.sum(1, keepdim=True)
    model = count_model(batch_of(rows), order=2, smoothing="additive", alpha=1.0)
    logits, _ = model(torch.arange(VOCAB)[None])
    torch.testing.assert_close(logits[0].exp(), P)


@pytest.mark.parametrize("smoothing", ["additive", "recursive-additive"])
def test_heavy_smoothing_approaches_uniform(smoothing: Any) -> None:
    model = count_model(batch_of(random_rows(50)), order=3, smoothing=smoothing, alpha=1e9)
    logits, _ = model(torch.tensor([[0, 1, 2, 3]]))
    torch.testing.assert_close(logits[0, 1:], torch.full((3, VOCAB), -math.log(VOCAB)))
    torch.testing.assert_close(logits[0, 0, 1:], torch.full((VOCAB - 1,), -math.log(VOCAB - 1)))


@pytest.mark.parametrize("smoothing", ["additive", "recursive-additive"])
def test_without_smoothing_unseen_ngrams_have_probability_zero(smoothing: Any) -> None:
    batch = batch_of([([0, 1, 2, 1, 2, 1], [1, 2, 1, 2, 1, 3])])
    model = count_model(batch, order=3, smoothing=smoothing, alpha=0.0)
    p_TV = model(torch.tensor([[0, 1, 2, 1, 2]]))[0][0].exp()
    assert p_TV[0].tolist() == [0, 1, 0, 0, 0, 0]
    torch.testing.assert_close(p_TV[3], torch.tensor([0, 0, 0.5, 0.5, 0, 0]))
    unseen = model(torch.tensor([[0, 5]]))[0][0, 1].exp()
    # The context (0, 5) is unseen: uniform, or backed off to the unigram.
    unigram = torch.tensor([0, 3, 2, 1, 0, 0]) / 6
    uniform = torch.tensor([0, 1, 1, 1, 1, 1]) / 5  # the boundary was never counted
    expected = uniform if smoothing == "additive" else unigram
    torch.testing.assert_close(unseen, expected)


@SMOOTHINGS
def test_an_untrained_model_is_uniform(smoothing: Any) -> None:
    logits, _ = Count(CountConfig(order=3, smoothing=smoothing), VOCAB, 0)(torch.tensor([[0, 1, 5]]))
    torch.testing.assert_close(logits, torch.full_like(logits, -math.log(VOCAB)))


@pytest.mark.parametrize("tokens", [[], [1], [1] * 50, [1, 2, 3, 4, 5], [1, 2] * 30])
def test_texts_too_small_for_discounts_give_valid_probabilities(tokens: list[int]) -> None:
    model = count_model(batch_of([([0, *tokens], [*tokens, 0])]), order=4)
    logits, _ = model(torch.tensor([[0, 1, 2, 3, 1, 1, 1, 5, 4]]))
    assert logits[0, 1:].isfinite().all()
    assert logits[0, 0, 1:].isfinite().all()
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(1, 9))


@pytest.mark.parametrize("settings", [{"order": -1}, {"order": 13}, {"alpha": -1.0}, {"smoothing": "none"}])
def test_invalid_settings_are_rejected(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        CountConfig(**settings)


# --- chunks and partial counts -------------------------------------------------------------------


@SMOOTHINGS
@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("chunk_size", [1, 2, 7])
def test_chunked_calls_with_state_match_one_call(smoothing: Any, order: int, chunk_size: int) -> None:
    model = count_model(batch_of(random_rows(80)), order=order, smoothing=smoothing)
    tokens_BT = torch.randint(VOCAB, (3, 21), generator=torch.Generator().manual_seed(0))
    expected, no_state = model(tokens_BT)
    state, chunks = model.init_state(3, 21), []
    for chunk in tokens_BT.split(chunk_size, dim=1):
        logits, state = model(chunk, state)
        chunks.append(logits)
    assert no_state is None
    assert torch.equal(torch.cat(chunks, dim=1), expected)


@pytest.mark.parametrize("chunk_size", [3, 40, 1 << 20])
@pytest.mark.parametrize("length", [1, 5, 60])
def test_continued_batches_give_the_same_table_as_one_batch(
    monkeypatch: pytest.MonkeyPatch, chunk_size: int, length: int
) -> None:
    monkeypatch.setattr(counter, "COUNT_CHUNK_SIZE", chunk_size)
    stream = stream_of(torch.randint(VOCAB, (240,), generator=torch.Generator().manual_seed(0)))
    batches = [
        Batch(i, t, n > 0)
        for n, (i, t) in enumerate(
            zip(stream.inputs_BT.split(length, 1), stream.targets_BT.split(length, 1), strict=True)
        )
    ]
    assert_same_table(count_model(*batches, order=4).table, count_model(stream, order=4).table)


def test_merged_tables_equal_counting_at_once() -> None:
    rows = random_rows(90)
    parts = [count_model(batch_of(rows[i::3]), order=4).table for i in range(3)]
    merged = merge_tables(merge_tables(parts[2], parts[0]), parts[1])
    assert_same_table(merged, count_model(batch_of(rows), order=4).table)


def test_an_ignored_prefix_is_context_but_not_counted() -> None:
    inputs, targets = torch.tensor([[0, 1, 2, 3, 1]]), torch.tensor([[1, 2, 3, 1, 2]])
    masked = targets.clone()
    masked[:, :3] = IGNORE_INDEX
    model, full = count_model(Batch(inputs, masked), order=3), count_model(Batch(inputs, targets), order=3)
    for n in (1, 2, 3):
        assert model.table.counts(n).sum() == 2
        np.testing.assert_array_equal(model.table.keys(n), full.table.keys(n))


def test_a_first_batch_cannot_continue_another() -> None:
    model, batch = count_model(), stream_of(torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="continue"):
        model.count_batch(batch._replace(continues=True))


def test_keys_too_large_to_pack_are_still_sorted() -> None:
    keys = np.array([1 << 61, 5, 1 << 61, 0, 5])
    unique, inverse = counter._unique(keys)
    assert unique.tolist() == [0, 5, 1 << 61]
    assert inverse.tolist() == [2, 1, 2, 0, 1]


# --- other orders --------------------------------------------------------------------------------


@SMOOTHINGS
def test_lower_orders_match_direct_counting(smoothing: Any) -> None:
    batch, held_out = batch_of(random_rows(100)), batch_of(random_rows(20, seed=5))
    model = count_model(batch, order=6, smoothing=smoothing)
    losses = model.losses_by_order([held_out])
    assert list(losses) == [1, 2, 3, 4, 5, 6]
    for order, loss in losses.items():
        truncated = count_model(batch, order=6, smoothing=smoothing)
        truncated._set_order(order)
        direct = count_model(batch, order=order, smoothing=smoothing)
        assert truncated.config == direct.config
        assert torch.equal(truncated(held_out.inputs_BT)[0], direct(held_out.inputs_BT)[0])
        assert loss == pytest.approx(mean_nats(direct, held_out), abs=1e-6)


@SMOOTHINGS
@pytest.mark.parametrize("documents", [1, 12, 100])
def test_losses_and_the_chosen_order_match_the_reference(smoothing: Any, documents: int) -> None:
    """Against a separate reference for each order; few documents make the discounts of many orders fail."""
    rows, held_out = random_rows(documents), random_rows(8, seed=5)
    model = Count(CountConfig(max_order=5, smoothing=smoothing), VOCAB, 0)
    model.count_batch(batch_of(rows))
    losses = model.losses_by_order([batch_of(held_out)])
    expected = {}
    for order in range(1, 6):
        reference = Reference(rows, CountConfig(order=order, smoothing=smoothing))
        pairs = [pair for row in held_out for pair in histories(row, order)]
        expected[order] = -float(np.mean([math.log(reference.p(h, w)) for h, w in pairs]))
    assert losses == pytest.approx(expected, abs=1e-6)
    model.finish([batch_of(held_out)])
    del expected[1]  # doesn't see where a line begins
    assert model.order == min(expected, key=expected.__getitem__)


@pytest.mark.parametrize("vocab_size", [3, 300, 40_000])
def test_tables_of_any_vocabulary_find_what_a_dictionary_finds(
    monkeypatch: pytest.MonkeyPatch, vocab_size: int
) -> None:
    """Blocks and chunks of a few n-grams, and counts above a byte."""
    monkeypatch.setattr("makemore.models.ngrams.table.BLOCK_SIZE", 7)
    monkeypatch.setattr("makemore.models.ngrams.builder.BLOCK_SIZE", 7)
    monkeypatch.setattr("makemore.models.ngrams.table.FIND_CHUNK_SIZE", 5)
    rng = np.random.default_rng(0)
    tokens = np.minimum(rng.geometric(0.3, 6000), vocab_size - 1)
    tokens[::7] = vocab_size - 1
    tables = [count_ngrams(3, vocab_size, 0, t[:-1], t[1:]) for t in (tokens[:3400], tokens[3399:])]
    counts = Counter[Gram]()
    for part in (tokens[:3400], tokens[3399:]):
        for n in (2, 3):
            counts.update(tuple(part[i : i + n].tolist()) for i in range(len(part) - n + 1))
    table = merge_tables(*tables)
    table.validate()
    assert sum(table.sizes[1:]) == len(counts)
    assert max(counts.values()) > 255
    for gram, count in counts.items():
        nodes = np.array([gram[0] + 1], np.int32)
        for token in gram[1:]:
            nodes = table.find(nodes, np.array([token]))
        assert table.counts_G.unpack(slice(nodes[0], nodes[0] + 1)) == [count]
    assert table.find(np.array([2, -1], np.int32), np.array([0, 0])).tolist() == [-2, -1]


# --- saving --------------------------------------------------------------------------------------


def test_state_dict_round_trip() -> None:
    model = count_model(batch_of(random_rows(60)), order=4)
    loaded = Count(model.config, VOCAB, 0)
    loaded.load_state_dict(model.state_dict(), strict=True)
    tokens_BT = torch.tensor([[0, 1, 2, 3, 4, 5, 1]])
    assert torch.equal(loaded(tokens_BT)[0], model(tokens_BT)[0])
    assert loaded.n_parameters() == model.n_parameters() == sum(model.table.sizes)


def test_counting_can_resume_inside_a_document() -> None:
    stream = stream_of(torch.randint(VOCAB, (50,), generator=torch.Generator().manual_seed(0)))
    interrupted = Count(CountConfig(order=4), VOCAB, 0)
    interrupted.count_batch(Batch(stream.inputs_BT[:, :20], stream.targets_BT[:, :20]))
    resumed = Count(CountConfig(order=4), VOCAB, 0)
    resumed.load_state_dict(interrupted.state_dict())
    resumed.count_batch(Batch(stream.inputs_BT[:, 20:], stream.targets_BT[:, 20:], continues=True))
    resumed.finish()
    assert_same_table(resumed.table, count_model(stream, order=4).table)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("tokens", lambda t: t.flip(0), "strictly increasing"),
        ("tokens", lambda t: t[:-1], "wrong shape"),
        ("tokens", lambda t: t + 200, "outside the vocabulary"),
        ("first", lambda t: t - 1, "of a trie"),
        ("first", lambda t: t.flip(0), "of a trie"),
        ("sizes", lambda t: t[:-1], "wrong shape"),
        ("sizes", lambda t: t.flip(0), "expected 6|wrong shape"),
        ("counts", lambda t: t[1:], "counts of"),
        ("counts", lambda t: t | 255, "large counts"),
        ("large_counts", lambda t: torch.tensor([300]), "0 large counts"),
        ("counts", lambda t: t.double(), "expected torch.uint8"),
        ("tokens", lambda t: t[:, None], "size mismatch"),
    ],
)
def test_a_damaged_table_is_rejected(name: str, damage: Any, message: str) -> None:
    state = count_model(batch_of(random_rows(60)), order=4).state_dict()
    state[name] = damage(state[name])
    with pytest.raises(RuntimeError, match=message):
        Count(CountConfig(order=4), VOCAB, 0).load_state_dict(state)


def test_a_table_for_another_vocabulary_is_rejected() -> None:
    state = count_model(batch_of(random_rows(60)), order=4).state_dict()
    with pytest.raises(RuntimeError, match="expected 9"):
        Count(CountConfig(order=4), 9, 0).load_state_dict(state)


# --- published values ----------------------------------------------------------------------------


def test_perplexity_on_shakespeare_matches_kenlm(shakespeare_file: Path) -> None:
    text = shakespeare_file.read_text()
    ids = {c: i for i, c in enumerate(sorted(set(text)), start=1)}
    tokens = torch.tensor([ids[c] for c in text])
    n = int(0.9 * len(tokens))
    model = count_model(stream_of(tokens[:n]), vocab_size=len(ids) + 1, order=5)
    loss = model.losses_by_order([stream_of(tokens[n:])])[5]
    assert math.exp(loss) == pytest.approx(4.7649, rel=1e-3)


def test_bigram_loss_on_names_matches_the_lectures(names_file: Path) -> None:
    rows = [[ord(c) - ord("a") + 1 for c in name] for name in names_file.read_text().split()]
    batch = batch_of([([0, *row], [*row, 0]) for row in rows])
    model = count_model(batch, vocab_size=27, order=2, smoothing="additive", alpha=1.0)
    assert mean_nats(model, batch) == pytest.approx(2.4544, abs=5e-4)


def test_the_order_is_chosen_on_held_out_batches() -> None:
    """The chosen order has the lowest held-out loss (a cyclic text needs one token of context)."""
    tokens = torch.tensor([[0, *([1, 2, 3] * 200)]])
    batch = Batch(tokens[:, :-1], tokens[:, 1:])
    model = Count(CountConfig(max_order=6), VOCAB, 0)
    model.count_batch(batch)
    losses = model.losses_by_order([batch])
    model.finish([batch])
    assert model.config.order == min(losses, key=lambda order: losses[order])
    loaded = Count(model.config, VOCAB, 0)
    loaded.load_state_dict(model.state_dict())
    assert torch.equal(loaded(tokens)[0], model(tokens)[0])


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_packed_and_per_level_counting_are_equal(data):
    """Rows of several documents cut anywhere, with ignored prefixes and gaps."""
    vocab, order = data.draw(st.integers(2, 4)), data.draw(st.integers(1, 6))
    token = st.integers(1, vocab - 1)
    inputs, targets = [], []
    for _ in range(data.draw(st.integers(1, 4))):
        row: list[tuple[int, int]] = []
        for document in data.draw(st.lists(st.lists(token, min_size=1, max_size=6), min_size=1, max_size=3)):
            end = [0] if data.draw(st.booleans()) else []
            row += zip([0, *document], [*document, *end], strict=False)
        row = row[data.draw(st.integers(0, len(row) - 1)) :] + [(0, IGNORE_INDEX)] * data.draw(
            st.integers(0, 2)
        )
        ignored = data.draw(st.sets(st.integers(0, len(row) - 1)))
        inputs += [i for i, _ in row] + [ABSENT]
        targets += [IGNORE_INDEX if n in ignored else t for n, (_, t) in enumerate(row)] + [IGNORE_INDEX]
    arrays = np.array(inputs), np.array(targets)
    packed = count_ngrams(order, vocab, 0, *arrays)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counter, "_packed_levels", counter._levels)
        by_level = count_ngrams(order, vocab, 0, *arrays)
    assert_same_table(packed, by_level)
    packed.validate()
