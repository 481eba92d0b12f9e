"""Intervals against closed forms, and against text whose entropy is known."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from makemore.intervals import (
    BLOCK_BYTES,
    MOST_UNITS,
    RESAMPLES,
    block_totals,
    bootstrap_interval,
    joined,
    judge,
    paired_difference,
    percentiles,
    resampled_totals,
    run_length,
    student_t,
)

BITS = math.log(2)


def normal_units(
    n: int, seed: int = 0, mean: float = 2.0, spread: float = 0.3
) -> tuple[np.ndarray, np.ndarray]:
    """Nats and bytes of units of a few bits per byte."""
    rng = np.random.default_rng(seed)
    bytes_U = rng.integers(5, 15, n)
    return bytes_U * rng.normal(mean, spread, n) * BITS, bytes_U


def test_agrees_with_the_normal_interval():
    nats_U, bytes_U = normal_units(4000)
    low, high = bootstrap_interval(nats_U, bytes_U)
    ratio = nats_U.sum() / bytes_U.sum()
    spread = np.std(nats_U - ratio * bytes_U) / bytes_U.mean() / math.sqrt(4000)
    np.testing.assert_allclose([low, high], (ratio + np.array([-1.96, 1.96]) * spread) / BITS, rtol=2e-3)


def test_many_units_are_joined_without_harm():
    nats_U, bytes_U = normal_units(40 * MOST_UNITS)
    totals = resampled_totals(joined(np.stack([nats_U, bytes_U])))
    assert totals.shape == (RESAMPLES, 2)
    ratio = nats_U.sum() / bytes_U.sum()
    spread = np.std(nats_U - ratio * bytes_U) / bytes_U.mean() / math.sqrt(len(nats_U))
    assert np.std(totals[:, 0] / totals[:, 1]) == pytest.approx(spread, rel=0.06)


@pytest.mark.parametrize(("freedom", "point"), [(4, 2.776), (9, 2.262), (19, 2.093), (99, 1.984)])
def test_student_t(freedom, point):
    assert student_t(freedom) == pytest.approx(point, rel=3e-3)


def test_few_units_make_wide_intervals():
    nats_U, bytes_U = normal_units(8, seed=3)
    bytes_U = np.full(8, 10)
    low, high = bootstrap_interval(nats_U, bytes_U)
    ratio = nats_U / bytes_U / BITS
    half = 2.365 * ratio.std(ddof=1) / math.sqrt(8)
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)


def test_a_single_unit_says_nothing():
    assert bootstrap_interval(np.array([5.0]), np.array([9])) == (0.0, math.inf)
    assert percentiles(np.ones(10), 1) == (-math.inf, math.inf)


def autoregressive(n: int, likeness: float, seed: int) -> np.ndarray:
    """A stationary series whose neighbours are alike."""
    rng = np.random.default_rng(seed)
    values = [rng.normal() / math.sqrt(1 - likeness**2)]
    for noise in rng.normal(size=n - 1):
        values.append(likeness * values[-1] + noise)
    return np.array(values)


class TestNeighbours:
    def test_that_are_strangers_are_drawn_alone(self):
        lengths = [run_length(np.random.default_rng(seed).normal(size=400)) for seed in range(40)]
        assert np.median(lengths) == 1

    def test_that_are_alike_are_drawn_together(self):
        """Near the best length for a series of first order, (2 g² / D)^(1/3) n^(1/3), which is known."""
        likeness, n = 0.6, 2000
        best = (3 / 2 * (2 * likeness / (1 - likeness**2)) ** 2 * n) ** (1 / 3)
        lengths = [run_length(autoregressive(n, likeness, seed)) for seed in range(20)]
        assert np.median(lengths) == pytest.approx(best, rel=0.3)

    def test_make_intervals_as_wide_as_they_have_to_be(self):
        likeness, n = 0.6, 1000
        exact = 1 / (1 - likeness) / math.sqrt(n)  # of the mean, for noise of size 1
        widths = []
        for seed in range(10):
            nats_U = (autoregressive(n, likeness, seed) + 50) * BITS
            low, high = bootstrap_interval(nats_U, np.ones(n))
            widths.append((high - low) / 2 / 1.96)
        assert np.median(widths) == pytest.approx(exact, rel=0.15)

    def test_that_are_all_the_same_are_no_trouble(self):
        assert run_length(np.ones(100)) == run_length(np.zeros(100)) == run_length(np.arange(5.0)) == 1
        assert 1 < run_length(np.arange(300.0)) <= 100


class TestBlocks:
    def test_add_up_and_are_even(self):
        rng = np.random.default_rng(0)
        sizes = rng.integers(1, 9, 3000)
        nats = rng.uniform(0, 5, 3000)
        total = int(sizes.sum())
        nats_U, bytes_U = block_totals(nats, sizes, total)
        assert (bytes_U[:-1] == BLOCK_BYTES).all()
        assert bytes_U.sum() == total
        assert nats_U.sum() == pytest.approx(nats.sum())

    def test_are_the_same_for_every_tokenizer(self):
        """Nats that are even over bytes come to the same blocks, however tokens are cut."""
        rng = np.random.default_rng(0)
        for sizes in (np.ones(2000, int), np.full(400, 5), np.append(rng.integers(1, 20, 150), 0)):
            sizes = np.append(sizes[sizes > 0], 2000 - sizes.sum()) if sizes.sum() < 2000 else sizes
            nats_U, bytes_U = block_totals(sizes * 0.7, sizes, int(sizes.sum()))
            np.testing.assert_allclose(nats_U, bytes_U * 0.7)

    def test_a_token_across_an_edge_is_shared_out(self):
        sizes = np.array([BLOCK_BYTES - 1, 4, BLOCK_BYTES])
        nats_U, _ = block_totals(np.array([1.0, 8.0, 3.0]), sizes, int(sizes.sum()))
        np.testing.assert_allclose(nats_U, [1 + 2, 6 + 3 * (BLOCK_BYTES - 3) / BLOCK_BYTES, 9 / BLOCK_BYTES])

    def test_an_impossible_token_makes_its_block_impossible(self):
        nats_U, _ = block_totals(np.array([1.0, math.inf, 1.0]), np.full(3, BLOCK_BYTES), 3 * BLOCK_BYTES)
        assert nats_U.tolist() == [1.0, math.inf, 1.0]

    def test_what_was_left_out_lies_evenly(self):
        nats_U, bytes_U = block_totals(np.ones(1000), np.ones(1000, int), 2 * 1000)
        assert bytes_U.sum() == 2000
        np.testing.assert_allclose(nats_U, bytes_U / 2)


class TestJudging:
    def test_a_pair_on_the_same_text_is_told_apart_better_than_two_intervals_do(self):
        nats_U, bytes_U = normal_units(500)
        rng = np.random.default_rng(9)
        worse_U = nats_U + bytes_U * rng.normal(0.01, 0.02, 500) * BITS
        best, other = judge([nats_U[None], worse_U[None]], bytes_U)
        assert best.difference == 0
        assert not best.beyond_noise
        assert other.ci95[0] < best.ci95[1]  # apart, they overlap
        assert other.beyond_noise
        difference, ci95 = paired_difference(worse_U, nats_U, bytes_U)
        assert other.difference == pytest.approx(difference)
        np.testing.assert_allclose(other.difference_ci95, ci95, rtol=1e-9)

    def test_the_same_twice_is_no_difference(self):
        nats_U, bytes_U = normal_units(100)
        _, twin = judge([nats_U[None], nats_U[None]], bytes_U)
        assert twin.difference == 0
        assert twin.difference_ci95 == (0.0, 0.0)
        assert not twin.beyond_noise

    def test_seeds_widen_the_interval_by_student_t(self):
        bytes_U = np.full(200, 100)
        bits_S = np.array([2.0, 2.02, 2.07])
        (judged,) = judge([bits_S[:, None] * bytes_U * BITS], bytes_U)
        half = 4.303 * bits_S.std(ddof=1) / math.sqrt(3)
        assert judged.bits_per_byte == pytest.approx(bits_S.mean())
        assert (judged.ci95[1] - judged.ci95[0]) / 2 == pytest.approx(half, rel=0.15)

    def test_luck_between_seeds_is_not_taken_for_skill(self):
        nats_U, bytes_U = normal_units(400)
        lucky = np.stack([nats_U, nats_U + 0.05 * bytes_U, nats_U + 0.1 * bytes_U])
        other = np.stack([nats_U + 0.01 * bytes_U, nats_U + 0.06 * bytes_U, nats_U + 0.12 * bytes_U])
        assert not judge([lucky, other], bytes_U)[1].beyond_noise
        assert judge([lucky[:1], other[:1]], bytes_U)[1].beyond_noise

    def test_the_impossible_comes_last(self):
        nats_U, bytes_U = normal_units(50)
        broken_U = nats_U.copy()
        broken_U[7] = math.inf
        broken, fine = judge([broken_U[None], nats_U[None]], bytes_U)
        assert fine.difference == 0
        assert broken.bits_per_byte == broken.difference == broken.ci95[0] == math.inf


@pytest.fixture(scope="module")
def coverage():
    path = Path(__file__).resolve().parent.parent / "benchmarks" / "coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize("case", ["lines", "text", "text in scenes", "3 seeds"])
def test_intervals_hold_the_truth(coverage, case):
    alone, difference = coverage.shares(case, 30)
    # How alike neighbours are has to be found out from the same text.
    least = 0.8 if case == "text in scenes" else 0.85
    assert alone >= least
    assert difference >= least


def test_they_are_not_just_wide(coverage):
    source = coverage.make_source("lines")
    rng = np.random.default_rng(0)
    split = coverage.encode_documents("val", [source.text(rng)], "lines", coverage.TOKENIZER)
    best = source.best_model()
    found = coverage.score(coverage.model_of(best), split, coverage.TOKENIZER)
    low, high = found.ci95_bits_per_byte
    assert high - low < 0.15
    assert source.bits(coverage.blurred(best)) > source.bits(best) + 0.02
