"""Confidence intervals against closed forms, and against synthetic text of known entropy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from makemore.evaluation.intervals import (
    BLOCK_BYTES,
    MIN_EFFECTIVE_UNITS,
    NO_ERROR,
    UNKNOWN,
    MeanError,
    block_totals,
    effective_units,
    paired_difference,
    student_t_quantile,
    text_error,
    text_interval,
)
from tests.scripts import loaded

BITS = math.log(2)


def normal_units(n: int, seed: int = 0, mean: float = 2.0, std: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Nats and bytes of independent units of about ``mean`` bits per byte."""
    rng = np.random.default_rng(seed)
    bytes_U = rng.integers(5, 15, n)
    return bytes_U * rng.normal(mean, std, n) * BITS, bytes_U


def independent_error(nats_U: np.ndarray, bytes_U: np.ndarray) -> float:
    """Standard error of the ratio, in bits, for independent units."""
    ratio = nats_U.sum() / bytes_U.sum()
    return float(np.std(nats_U - ratio * bytes_U) / bytes_U.mean() / math.sqrt(len(nats_U)) / BITS)


def test_independent_units_give_the_normal_interval():
    nats_U, bytes_U = normal_units(4000)
    low, high = text_interval(nats_U, bytes_U)
    assert (low + high) / 2 == pytest.approx(nats_U.sum() / bytes_U.sum() / BITS)
    assert (high - low) / 2 == pytest.approx(1.96 * independent_error(nats_U, bytes_U), rel=0.15)


def test_error_matches_the_low_frequency_cosine_estimator():
    nats_U, bytes_U = normal_units(60, seed=2)
    residuals_U = nats_U - nats_U.sum() / bytes_U.sum() * bytes_U
    coefficients = [
        sum(s * math.sqrt(2) * math.cos(math.pi * j * (u + 0.5) / 60) for u, s in enumerate(residuals_U))
        for j in range(1, 6)
    ]
    error = text_error(nats_U, bytes_U)
    assert error.dof == 5  # 0.3 · 60^(2/3)
    assert error.variance == pytest.approx(np.mean(np.square(coefficients)) / (bytes_U.sum() * BITS) ** 2)


@pytest.mark.parametrize(
    ("dof", "quantile"), [(1, 12.7062), (2, 4.3027), (4, 2.7764), (19, 2.0930), (99, 1.9842), (1e9, 1.95997)]
)
def test_student_t(dof, quantile):
    assert student_t_quantile(dof, 0.95) == pytest.approx(quantile, rel=1e-4)


@pytest.mark.parametrize(("dof", "quantile"), [(2, 22.327), (4, 7.1732), (30, 3.3852), (1e9, 3.0902)])
def test_student_t_far_out(dof, quantile):
    """Two-sided 99.8 % points."""
    assert student_t_quantile(dof, 0.998) == pytest.approx(quantile, rel=1e-3)


def test_few_units_give_wide_intervals():
    """The degrees of freedom are the number of cosines."""
    nats_U, bytes_U = normal_units(14, seed=3)
    low, high = text_interval(nats_U, bytes_U)
    error = text_error(nats_U, bytes_U)
    assert error.dof == 3
    assert (high - low) / 2 == pytest.approx(3.1824 * math.sqrt(error.variance), rel=1e-4)


def test_effective_units_of_an_autoregressive_series():
    assert effective_units(np.zeros(7)) == 7
    assert np.median([effective_units(autoregressive(1000, 0.6, s)) for s in range(20)]) == pytest.approx(
        1000 * 0.4 / 1.6, rel=0.1
    )
    short = [effective_units(autoregressive(40, 0.8, s)) for s in range(200)]
    assert np.mean(np.array(short) < MIN_EFFECTIVE_UNITS) > 0.7  # 4.4 in truth
    independent = [effective_units(autoregressive(25, 0.0, s)) for s in range(200)]
    assert np.mean(np.array(independent) < MIN_EFFECTIVE_UNITS) < 0.05


def test_single_unit_gives_an_unbounded_interval():
    assert text_interval(np.array([5.0]), np.array([9])) == (0.0, math.inf)
    assert paired_difference(np.array([5.0]), np.array([4.0]), np.array([9]))[1] == (-math.inf, math.inf)


def test_identical_units_give_an_interval_of_zero_width():
    assert text_interval(np.full(100, 3 * BITS), np.ones(100)) == pytest.approx((3.0, 3.0))


def test_variances_of_independent_parts_add():
    """Welch-Satterthwaite: two equal errors double the degrees of freedom, a large one dominates."""
    one = MeanError(4.0, 5)
    assert one + one == MeanError(8.0, pytest.approx(10))
    assert (one + MeanError(1e-9, 1)).dof == pytest.approx(5)
    assert one + NO_ERROR == one
    assert NO_ERROR + NO_ERROR == NO_ERROR
    assert (one + UNKNOWN).half_width() == math.inf


def autoregressive(n: int, rho: float, seed: int) -> np.ndarray:
    """A stationary AR(1) series with unit noise."""
    rng = np.random.default_rng(seed)
    values = [rng.normal() / math.sqrt(1 - rho**2)]
    for noise in rng.normal(size=n - 1):
        values.append(rho * values[-1] + noise)
    return np.array(values)


def test_correlated_units_widen_the_error_correctly():
    rho, n = 0.6, 1000
    exact = 1 / (1 - rho) / math.sqrt(n)  # standard error of the mean, for unit noise
    errors = [
        math.sqrt(text_error((autoregressive(n, rho, seed) + 50) * BITS, np.ones(n)).variance)
        for seed in range(20)
    ]
    assert np.median(errors) == pytest.approx(exact, rel=0.15)


class TestBlocks:
    def test_blocks_are_equal_and_sum_to_the_total(self):
        rng = np.random.default_rng(0)
        sizes = rng.integers(1, 9, 3000)
        nats = rng.uniform(0, 5, 3000)
        total = int(sizes.sum())
        nats_U, bytes_U = block_totals(nats, sizes, total)
        assert (bytes_U[:-1] == BLOCK_BYTES).all()
        assert bytes_U.sum() == total
        assert nats_U.sum() == pytest.approx(nats.sum())

    def test_blocks_do_not_depend_on_the_tokenizer(self):
        """Nats spread evenly over bytes give the same blocks for any tokenization."""
        rng = np.random.default_rng(0)
        for sizes in (np.ones(2000, int), np.full(400, 5), np.append(rng.integers(1, 20, 150), 0)):
            sizes = np.append(sizes[sizes > 0], 2000 - sizes.sum()) if sizes.sum() < 2000 else sizes
            nats_U, bytes_U = block_totals(sizes * 0.7, sizes, int(sizes.sum()))
            np.testing.assert_allclose(nats_U, bytes_U * 0.7)

    def test_token_across_an_edge_is_divided(self):
        sizes = np.array([BLOCK_BYTES - 1, 4, BLOCK_BYTES])
        nats_U, _ = block_totals(np.array([1.0, 8.0, 3.0]), sizes, int(sizes.sum()))
        np.testing.assert_allclose(nats_U, [1 + 2, 6 + 3 * (BLOCK_BYTES - 3) / BLOCK_BYTES, 9 / BLOCK_BYTES])

    def test_infinite_token_makes_its_block_infinite(self):
        nats_U, _ = block_totals(np.array([1.0, math.inf, 1.0]), np.full(3, BLOCK_BYTES), 3 * BLOCK_BYTES)
        assert nats_U.tolist() == [1.0, math.inf, 1.0]

    def test_skipped_bytes_are_spread_evenly(self):
        nats_U, bytes_U = block_totals(np.ones(1000), np.ones(1000, int), 2 * 1000)
        assert bytes_U.sum() == 2000
        np.testing.assert_allclose(nats_U, bytes_U / 2)


@pytest.fixture(scope="module")
def coverage():
    with loaded("benchmarks/coverage.py") as module:
        yield module


N_INTERVALS = 60
MIN_COVERED = 46
"""Required number of intervals that cover the truth: 90 % intervals fall short less than once in a thousand
times, 60 % intervals reach it less than once in a hundred."""


def prob_fewer(n: int, trials: int, p: float) -> float:
    """Probability that a binomial count is less than ``n``."""
    return sum(math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(n))


def test_min_covered_separates_good_intervals_from_bad():
    assert prob_fewer(MIN_COVERED, N_INTERVALS, 0.9) < 1e-3
    assert prob_fewer(MIN_COVERED, N_INTERVALS, 0.6) > 0.99


@pytest.mark.parametrize(
    "case",
    [
        "400 lines",
        "100 KB of homogeneous text",
        "100 KB in passages of 1.5 KB",
        "400 lines, adaptive",
        "3 seeds",
    ],
)
def test_intervals_cover_the_truth(coverage, case):
    """A short run of ``benchmarks/coverage.py``."""
    *rates, too_short = coverage.coverage_rates(case, N_INTERVALS)
    assert too_short == 0
    for coverage_rate in rates:
        assert round(coverage_rate * N_INTERVALS) >= MIN_COVERED


@pytest.mark.parametrize(("rows", "seeds"), [(2, 3), (5, 3), (10, 5)])
def test_equal_models_are_rarely_called_different(coverage, rows, seeds):
    """Some row is called worse in 5 % of comparisons; in more than 9 of 60, less than once in 1,000 times."""
    assert coverage.familywise_error_rate(rows, seeds, 60) <= 9 / 60


def test_one_seed_never_shows_a_difference(coverage):
    assert coverage.familywise_error_rate(5, 1, 20) == 0


def test_texts_of_few_passages_are_called_too_short(coverage):
    assert coverage.coverage_rates("3 KB in passages of 5 KB", 20)[2] == 1
    assert coverage.coverage_rates("20 KB in passages of 5 KB", 40)[2] > 0.5


def test_intervals_are_not_too_wide(coverage):
    """Intervals are at most 1.4 times as wide as 1.96 standard deviations of independent lines' scores."""
    source = coverage.make_source("lines")
    model = coverage.model_of(source.best_model())
    scores, widths = [], []
    for seed in range(40):
        lines = source.text(np.random.default_rng(seed))
        split = coverage.encode_documents("val", [lines], "lines", coverage.TOKENIZER)
        result = coverage.score(model, split, coverage.TOKENIZER)
        scores.append(result.bits_per_byte)
        widths.append(np.diff(result.ci95_bits_per_byte))
    assert np.median(widths) / 2 < 1.4 * 1.96 * np.std(scores)
