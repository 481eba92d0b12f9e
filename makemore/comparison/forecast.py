"""Forecasts of a model's loss after longer training, from the law fitted to its runs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from makemore.comparison.law import Array, PowerLaw, fit_law, resample_laws
from makemore.errors import UserError

MAX_EXTRAPOLATION = 10.0
"""Greatest factor by which a forecast may exceed the longest training."""
FEW_PASSES = 4
"""Passes over a text after which reading it again teaches less than new text (Muennighoff et al. 2023)."""
N_SIZES = 32
"""Sizes among which a forecast chooses."""


class Forecast(NamedTuple):
    """The expected loss of the best size after a training time."""

    seconds: float
    parameters: int
    """The best size."""
    bits: float
    """Bits per byte."""
    low: float
    high: float
    """Bounds of the 95 % interval, in bits per byte."""


@dataclass(frozen=True)
class ScalingLaw:
    """A power law fitted to the K runs of one model with one tokenizer. All arrays are (K,) float64."""

    model: str
    tokenizer: str
    parameters_K: Array
    tokens_K: Array
    """Tokens trained on."""
    seconds_K: Array
    """Training time."""
    bits_K: Array
    """Bits per byte on held-out text."""
    train_tokens: int
    """Tokens of the training text."""

    @property
    def name(self) -> str:
        return self.model if self.tokenizer == "char" else f"{self.model} {self.tokenizer}"

    @cached_property
    def law(self) -> PowerLaw:
        return fit_law(self.parameters_K, self.tokens_K, self.bits_K)

    @cached_property
    def _resampled(self) -> tuple[list[PowerLaw], Array]:
        return resample_laws(self.law, self.parameters_K, self.tokens_K, self.bits_K)

    @property
    def longest(self) -> float:
        """Seconds of the longest training."""
        return float(self.seconds_K.max())

    @cached_property
    def _speed(self) -> tuple[float, float]:
        """Slope and intercept of log tokens per second by log parameters."""
        logs = np.log(self.parameters_K), np.log(self.tokens_K / self.seconds_K)
        slope, intercept = np.polyfit(*logs, 1)
        return float(slope), float(intercept)

    def tokens_after(self, seconds: float, parameters: Array | float) -> Array:
        """Tokens that a model of this size trains on in this time."""
        slope, intercept = self._speed
        return seconds * np.exp(intercept + slope * np.log(parameters))

    def forecast(self, seconds: float) -> Forecast:
        """The best loss after this time, and its 95 % interval.

        Raises UserError below the shortest training, and beyond MAX_EXTRAPOLATION times the longest.
        """
        least, most = float(self.seconds_K.min()), MAX_EXTRAPOLATION * self.longest
        if not least * 0.999 <= seconds <= most * 1.001:
            raise UserError(
                f"a forecast for {seconds:g} s is too far from the training times, {least:.3g} to "
                f"{self.longest:.3g} s: {least:.3g} to {most:.3g} s can be forecast"
            )
        growth = max(1.0, seconds / self.longest) ** 0.5  # the best size grows with the square root of time
        smallest, largest = self.parameters_K.min(), self.parameters_K.max() * growth
        sizes_N = np.geomspace(smallest, largest, N_SIZES)
        tokens_N = self.tokens_after(seconds, sizes_N)
        best = int(np.argmin(self.law.predict(sizes_N, tokens_N)))
        laws, errors = self._resampled
        noise = np.random.default_rng(1).choice(errors, len(laws))
        samples = [float(law.predict(sizes_N[best], tokens_N[best])) for law in laws] * (1 + noise)
        low, high = np.quantile(samples, [0.025, 0.975])
        bits = float(self.law.predict(sizes_N[best], tokens_N[best]))
        return Forecast(seconds, int(sizes_N[best]), bits, min(float(low), bits), max(float(high), bits))

    @cached_property
    def last_forecast(self) -> Forecast:
        """The forecast for MAX_EXTRAPOLATION times the longest training."""
        return self.forecast(MAX_EXTRAPOLATION * self.longest)

    @property
    def error(self) -> float:
        """Root mean square of the relative errors of the fit."""
        fitted_K = self.law.predict(self.parameters_K, self.tokens_K)
        return float(np.sqrt(np.mean(np.square(self.bits_K / fitted_K - 1))))

    def lines(self) -> list[str]:
        """The law and its forecast, for people."""
        last, name, best = self.last_forecast, self.name, float(self.bits_K.min())
        text = f"{name}: bits/byte = {self.law} ({len(self.bits_K)} runs, typical error {self.error:.1%})"
        if last.bits >= best:
            doubt = f"{last.bits:.3f} bits/byte after ten times the time, but a run has reached {best:.3f}"
            return [text, f"{name}: no forecast: the law would give {doubt}; train longer or with more seeds"]
        forecast = (
            f"{name}: with ten times the longest time ({last.seconds:,.0f} s), expect about {last.bits:.3f} "
            f"bits/byte [{last.low:.3f}, {last.high:.3f}], with about {last.parameters:,} parameters"
        )
        passes = float(self.tokens_after(last.seconds, last.parameters)) / self.train_tokens
        if passes > FEW_PASSES:
            forecast += (
                f"; probably too good, because that takes {passes:,.0f} passes over the text, "
                "and reading it again teaches less and less"
            )
        return [text, forecast]

    def as_dict(self) -> dict[str, object]:
        return {
            "model": self.model,
            "tokenizer": self.tokenizer,
            "runs": len(self.bits_K),
            "law": dataclasses.asdict(self.law),
            "error": self.error,
            "forecast": self.last_forecast._asdict(),
        }
