"""Scaling studies: the law, its forecasts, and the runs that it is fitted to."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pytest

from makemore.comparison.cells import CellsRequest
from makemore.comparison.compare import CompareRequest, compare
from makemore.comparison.forecast import ScalingLaw
from makemore.comparison.law import PowerLaw, fit_law
from makemore.comparison.scaling import fit_scaling, scaling_cells
from makemore.corpus.datasets import bundled_file
from makemore.errors import UserError
from makemore.report.columns import notes
from makemore.report.comparison import comparison_page
from makemore.training.records import TrainResult
from makemore.training.request import TrainRequest
from makemore.training.train import train
from tests.comparison.test_compare import write_words

pytestmark = pytest.mark.usefixtures("forked_runs")

TRUE = PowerLaw(1.1, 30.0, 0.5, 60.0, 0.35)
PARAMETERS_K, TOKENS_K = (
    grid.ravel() for grid in np.meshgrid([2e4, 8e4, 3e5, 1.2e6], [2e5, 4e5, 8e5, 1.6e6])
)
SPEED = 1e10
"""Parameters times tokens per second of the made-up runs."""


def law_of(bits_K: np.ndarray, train_tokens: int = 10**9) -> ScalingLaw:
    """The law of made-up runs."""
    seconds_K = PARAMETERS_K * TOKENS_K / SPEED
    return ScalingLaw("mlp", "char", PARAMETERS_K, TOKENS_K, seconds_K, bits_K, train_tokens)


def noisy(rng: np.random.Generator, size: int) -> np.ndarray:
    return 1 + 0.004 * rng.standard_normal(size)


def test_exact_losses_give_the_law_back() -> None:
    law = fit_law(PARAMETERS_K, TOKENS_K, TRUE.predict(PARAMETERS_K, TOKENS_K))
    assert law.irreducible == pytest.approx(1.1, rel=0.01)
    assert law.parameter_exponent == pytest.approx(0.5, rel=0.02)
    assert law.token_exponent == pytest.approx(0.35, rel=0.02)
    assert law.predict(5e6, 2e7) == pytest.approx(TRUE.predict(5e6, 2e7), rel=1e-3)


def test_coefficients_are_not_negative() -> None:
    losses = 3 - 0.1 * np.log(TOKENS_K)  # falls faster than any power law with an irreducible part
    law = fit_law(PARAMETERS_K, TOKENS_K, losses)
    assert law.irreducible >= 0
    assert law.parameter_factor >= 0
    assert law.predict(PARAMETERS_K, TOKENS_K) == pytest.approx(losses, rel=0.02)


@pytest.mark.slow
def test_intervals_cover_what_ten_times_the_time_brings() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(10):
        law = law_of(TRUE.predict(PARAMETERS_K, TOKENS_K) * noisy(rng, len(TOKENS_K)))
        forecast = law.forecast(10 * law.longest)
        tokens = law.tokens_after(forecast.seconds, forecast.parameters)
        bits = TRUE.predict(forecast.parameters, tokens) * noisy(rng, 1)
        hits += bool(forecast.low <= bits <= forecast.high)
    assert hits >= 8  # of 10


def test_a_forecast_has_a_limit() -> None:
    law = law_of(TRUE.predict(PARAMETERS_K, TOKENS_K))
    assert law.forecast(10 * law.longest).bits < law.forecast(law.longest).bits
    for seconds in (11 * law.longest, 0.9 * law.seconds_K.min(), 0, -1, math.nan):
        with pytest.raises(UserError, match="too far from the training times"):
            law.forecast(seconds)


def test_a_law_that_is_worse_than_a_run_gives_no_forecast() -> None:
    bits_K = np.full(len(TOKENS_K), 3.0)
    bits_K[0] = 1.0
    law = law_of(bits_K)
    assert law.last_forecast.bits > bits_K.min()
    assert f"no forecast: the law would give {law.last_forecast.bits:.3f}" in law.lines()[1]


def test_terms_without_weight_are_not_printed() -> None:
    assert str(TRUE) == "1.1 + 30 / parameters^0.50 + 60 / tokens^0.35"
    assert str(PowerLaw(0.0, 0.0, 0.02, 60.0, 0.35)) == "0 + 60 / tokens^0.35"


def test_repeated_text_is_a_reason_for_doubt() -> None:
    bits_K = TRUE.predict(PARAMETERS_K, TOKENS_K)
    assert "probably too good" not in law_of(bits_K).lines()[1]
    law = law_of(bits_K, train_tokens=100_000)
    far = law.forecast(10 * law.longest)
    passes = law.tokens_after(far.seconds, far.parameters) / 100_000
    assert f"takes {passes:,.0f} passes over the text" in law.lines()[1]


class TestCells:
    @pytest.fixture
    def text(self, tmp_path):
        return str(write_words(tmp_path / "words.txt", n=300))

    def test_widths_and_times(self, text, tmp_path):
        request = CellsRequest(models="mlp,count,lstm", max_time=8.0, out=tmp_path / "runs")
        cells = scaling_cells(text, request)
        assert len(cells) == 16 + 1 + 16
        first = next(cell for cell in cells if cell.request.model == "mlp")
        assert first.settings == {"model.n_hidden": "128", "train.max_time": "1"}
        assert first.request.requested.train.max_time == 1.0
        assert first.folder == tmp_path / "runs" / "mlp-char-n_hidden=128-max_time=1-0"
        assert {cell.settings["train.max_time"] for cell in cells} == {"1", "2", "4", "8"}
        assert [cell.settings for cell in cells if cell.request.model == "count"] == [{"train.max_time": "8"}]
        assert len({cell.folder for cell in cells}) == len(cells)

    def test_a_grid_replaces_the_widths(self, text):
        request = CellsRequest(models="transformer", steps=80, grid=("model.n_layer=1,2",))
        cells = scaling_cells(text, request)
        assert [cell.settings["model.n_layer"] for cell in cells] == ["1", "2"] * 4
        assert [cell.settings["train.steps"] for cell in cells[::2]] == ["10", "20", "40", "80"]

    def test_a_grid_applies_to_the_models_that_have_the_setting(self, text):
        request = CellsRequest(models="transformer,mlp,count", steps=80, grid=("model.n_hidden=8,16",))
        cells = scaling_cells(text, request)
        assert [cell.request.model for cell in cells].count("mlp") == 8
        assert [cell.request.model for cell in cells].count("transformer") == 4
        assert [cell.request.model for cell in cells].count("count") == 1

    @pytest.mark.parametrize("budget", [{"steps": 4}, {"max_time": 0.02}])
    def test_too_small_budgets(self, text, budget):
        with pytest.raises(UserError, match="use at least 8 s or steps"):
            scaling_cells(text, CellsRequest(models="mlp", **budget))

    def test_a_single_size_is_refused(self, text):
        with pytest.raises(UserError, match="at least two values in --grid"):
            scaling_cells(text, CellsRequest(models="mlp", steps=80, grid=("model.n_hidden=8",)))


@pytest.mark.slow
def test_a_study_is_trained_fitted_and_shown(tmp_path) -> None:
    request = CompareRequest(
        inputs=(str(write_words(tmp_path / "words.txt", n=600)),),
        models="mlp,count",
        scaling=True,
        steps=24,
        grid=("model.n_hidden=8,32", "train.warmup_steps=2"),
        out=tmp_path / "runs",
        device="cpu",
        with_details=True,
    )
    comparison = compare(request)
    (law,) = comparison.laws
    assert len(law.bits_K) == 8
    assert comparison.not_fitted == ["count: no power law, since it has no width to vary"]
    assert sum(line.startswith("mlp: ") for line in notes(comparison)) == 2
    assert comparison.as_dict()["laws"][0]["model"] == "mlp"
    first, *others = [row for row in comparison.rows if row.model == "mlp"]
    short = dataclasses.replace(first, runs=(dataclasses.replace(first.runs[0], steps=2),))
    (law,), remarks = fit_scaling([short, *others])
    assert len(law.bits_K) == 7
    assert "mlp: 1 of 8 runs are not part of the law, because they ended during warm-up" in remarks[0]
    page = comparison_page(comparison)
    assert re.findall("<h1>(.*)</h1>", page) == ["9 settings of 2 models on words"]
    assert "Forecast by training time" in page
    assert "Loss by size" in page


@pytest.mark.slow
def test_small_budgets_predict_a_larger_one(tmp_path) -> None:
    """On the bundled first names. Seconds are a formula, so that the fit doesn't depend on the machine."""

    def train_one(width: int, steps: int) -> TrainResult:
        request = TrainRequest(
            input=str(bundled_file()),
            model="mlp",
            out=tmp_path / "run",
            settings=(
                f"model.n_hidden={width}",
                "train.warmup_steps=20",
                "train.batch_tokens=1024",
                "train.eval_tokens=2048",
                "train.patience=0",
            ),
            train={"steps": steps, "seed": 1, "device": "cpu"},
            overwrite=True,
        )
        return train(request)

    def summary(result: TrainResult) -> tuple[float, ...]:
        n = result.run.model.n_parameters()
        return n, result.tokens, result.tokens * (1e-6 + 1e-10 * n), result.score.bits_per_byte

    results = [train_one(width, steps) for width in (16, 64, 256) for steps in (40, 80, 160, 320)]
    columns = np.array([summary(result) for result in results], float).T
    law = ScalingLaw("mlp", "char", *columns, train_tokens=results[0].run.config.text.tokens["train"])
    larger = summary(train_one(256, 1280))
    forecast = law.forecast(4 * law.longest)
    assert forecast.low <= larger[-1] <= forecast.high
    assert forecast.high < law.bits_K.max()
