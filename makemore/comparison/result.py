"""The result of a comparison: rows of runs, best first, with all their metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from makemore.comparison.differences import setting_text
from makemore.comparison.forecast import ScalingLaw
from makemore.comparison.grid import Failure
from makemore.evaluation.baseline import is_near_uniform
from makemore.evaluation.profile import RunProfile
from makemore.evaluation.ranking import PairedResult
from makemore.runs.run import is_fitted_on
from makemore.runs.schema import RunRecord
from makemore.types import Score


@dataclass(frozen=True, kw_only=True)
class ScoredRun:
    """One run's metrics."""

    folder: Path
    config: RunRecord
    parameters: int
    seconds: float
    steps: int
    tokens: int
    """Tokens trained on."""
    peak_memory: int | None
    sampling_speed: float
    """Tokens per second at batch size 1."""
    score: Score
    """The frozen score."""
    adaptive: Score | None = None
    """The score of a model that learns while it is scored, if requested."""
    not_adaptive: str = ""
    """Why a requested adaptive score is missing."""
    uniform_nll: float
    """Nats per token on the same text if every token had the same probability."""

    @property
    def seed(self) -> int | None:
        return self.config.seed

    @property
    def tokens_per_second(self) -> float:
        """Training throughput."""
        return self.tokens / max(self.seconds, 1e-9)

    def as_dict(self) -> dict[str, Any]:
        adaptive = {} if self.adaptive is None else {"adaptive": self.adaptive.as_dict()}
        return {
            "run": str(self.folder),
            "seed": self.seed,
            "parameters": self.parameters,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "sampling_tokens_per_second": self.sampling_speed,
            "peak_memory": self.peak_memory,
            **self.score.as_dict(),
            **adaptive,
        }


@dataclass(frozen=True, kw_only=True)
class RankedModel:
    """Runs of one model and tokenizer that differ only in their seed. Metrics are means over them."""

    name: str
    runs: tuple[ScoredRun, ...]
    result: PairedResult
    """Of the frozen scores."""
    adaptive: PairedResult | None = None
    """Of the adaptive scores, ranked on their own."""
    samples: list[str]
    """Samples of the first run."""
    memorised: float | None
    """Share of memorised samples or text (see ``Memorization``); None if unknown."""
    profile: RunProfile | None
    """Diagnostics of the first run, if requested."""

    @property
    def config(self) -> RunRecord:
        """The settings, with the first run's seed."""
        return self.runs[0].config

    @property
    def model(self) -> str:
        return self.runs[0].config.model.name

    @property
    def tokenizer(self) -> str:
        return self.runs[0].config.tokenizer

    def fitted_on(self, split: str) -> bool:
        """Whether the row is a mixture whose weights were fitted on (part of) the scored split."""
        return is_fitted_on(self.runs[0].config, split)

    def mean(self, metric: Callable[[ScoredRun], float]) -> float:
        return sum(map(metric, self.runs)) / len(self.runs)

    @property
    def not_adaptive(self) -> str:
        """Why a requested adaptive score is missing."""
        return next((run.not_adaptive for run in self.runs if run.not_adaptive), "")

    @property
    def bits_range(self) -> tuple[float, float]:
        """Bits per byte of the best and the worst seed."""
        bits = [run.score.bits_per_byte for run in self.runs]
        return min(bits), max(bits)

    @property
    def peak_memory(self) -> int | None:
        """Maximum peak memory of the runs."""
        return max((run.peak_memory for run in self.runs if run.peak_memory is not None), default=None)

    @property
    def is_near_uniform(self) -> bool:
        """Whether the runs are hardly better than guessing."""
        nll, uniform = self.mean(lambda run: run.score.nll), self.mean(lambda run: run.uniform_nll)
        return is_near_uniform(nll, uniform)

    @property
    def unseen_bits_per_byte(self) -> float | None:
        """Mean over documents that don't occur in train, or None if no document occurs there."""
        scores = [run.score.not_in_train for run in self.runs]
        bits = [score.bits_per_byte for score in scores if score is not None]
        return sum(bits) / len(bits) if bits else None

    def as_dict(self) -> dict[str, Any]:
        """The row for ``--json`` and ``--csv``, without its runs."""
        first = self.runs[0]
        return {
            "name": self.name,
            "model": self.model,
            "tokenizer": self.tokenizer,
            "seeds": len(self.runs),
            "parameters": first.parameters,
            "seconds": self.mean(lambda run: run.seconds),
            "tokens_per_second": self.mean(lambda run: run.tokens_per_second),
            "sampling_tokens_per_second": self.mean(lambda run: run.sampling_speed),
            "peak_memory": self.peak_memory,
            "nll": self.mean(lambda run: run.score.nll),
            "perplexity": self.mean(lambda run: run.score.perplexity),
            "bits_per_char": self.mean(lambda run: run.score.bits_per_char),
            "bits_per_byte": self.result.bits_per_byte,
            "ci95": list(self.result.ci95),
            "bits_range": list(self.bits_range),
            "difference": self.result.difference,
            "difference_ci95": list(self.result.difference_ci95),
            "beyond_noise": self.result.beyond_noise,
            "verdict": self.result.verdict,
            **self._adaptive_dict(),
            "unseen_bits_per_byte": self.unseen_bits_per_byte,
            "memorised": self.memorised,
        }

    def _adaptive_dict(self) -> dict[str, Any]:
        """Null if the adaptive score is missing, empty if it wasn't requested."""
        result = self.adaptive
        if result is None and not self.not_adaptive:
            return {}
        return {
            "adaptive_bits_per_byte": None if result is None else result.bits_per_byte,
            "adaptive_ci95": [None, None] if result is None else list(result.ci95),
            "adaptive_difference": None if result is None else result.difference,
            "adaptive_difference_ci95": [None, None] if result is None else list(result.difference_ci95),
            "adaptive_verdict": None if result is None else result.verdict,
            "not_adaptive": self.not_adaptive or None,
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Rows scored on the same text, fewest bits per byte first."""

    source: str
    """The text's name."""
    split: str
    """The scored split, or the name of the scored file."""
    mode: str
    rows: list[RankedModel]
    failures: list[Failure] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    """Runs that were stopped early, and why."""
    not_fitted: list[str] = field(default_factory=list)
    """Models of a scaling study that have no law, and why."""
    laws: list[ScalingLaw] = field(default_factory=list)
    """Of a scaling study, one per model."""
    differences: list[str] = field(default_factory=list)
    """Names of the settings to show, since they differ between the rows."""

    def settings(self, row: RankedModel) -> dict[str, str]:
        """The row's values, as text, of the settings that differ between rows."""
        return {name: setting_text(row.config, name) for name in self.differences}

    def as_dict(self) -> dict[str, Any]:
        rows = [
            {
                **row.as_dict(),
                "settings": self.settings(row),
                "runs": [run.as_dict() for run in row.runs],
            }
            for row in self.rows
        ]
        return {
            **vars(self),
            "rows": rows,
            "failures": [asdict(failure) for failure in self.failures],
            "laws": [law.as_dict() for law in self.laws],
        }
