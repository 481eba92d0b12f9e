"""The columns of a comparison, with their displayed text and sort values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from makemore.comparison.result import Comparison, RankedModel, ScoredRun
from makemore.report.numbers import interval, memory, number, percent, with_unit

Value = Callable[[RankedModel], float | str | None]


@dataclass(frozen=True)
class Column:
    """One column: title, meaning, and the sort value and text of a row."""

    title: str
    meaning: str
    value: Value
    text: Callable[[RankedModel], str]

    @property
    def is_text(self) -> bool:
        return self.title in ("run", "tokenizer")


def _figure(title: str, meaning: str, value: Value, show: Callable[[Any], str] = number) -> Column:
    """A column whose text is its value, formatted by ``show``."""
    return Column(title, meaning, value, lambda row: show(value(row)))


def _mean(metric: Callable[[ScoredRun], float]) -> Value:
    return lambda row: row.mean(metric)


def _one_line(text: str) -> str:
    """Replace newlines in a name, so that it can't add table rows."""
    return text.replace("\n", r"\n")


def _beyond(row: RankedModel) -> str:
    return {"worse": "yes", "within noise": "no"}.get(row.result.verdict, row.result.verdict)


def _difference(difference: float) -> str:
    return "–" if difference == 0 or math.isinf(difference) else f"+{number(difference)}"


def _difference_interval(row: RankedModel) -> str:
    return "–" if row.result.difference == 0 else interval(row.result.difference_ci95, sign="+")


NAME = (
    _figure("run", "model or run directory", lambda row: row.name, _one_line),
    _figure("tokenizer", "name of the tokenizer", lambda row: row.tokenizer, _one_line),
)
QUALITY = (
    _figure(
        "bits/byte",
        "bits per byte of text, averaged over seeds; lower is better",
        lambda row: row.result.bits_per_byte,
    ),
    Column(
        "95 % interval",
        "confidence interval of bits/byte across texts (and across seeds, if there are several)",
        lambda row: row.result.ci95[0],
        lambda row: interval(row.result.ci95),
    ),
    _figure("vs best", "bits/byte above the best model", lambda row: row.result.difference, _difference),
    Column(
        "95 % vs best",
        "interval of the difference, paired by document or block; all rows hold together with 95 %",
        lambda row: row.result.difference_ci95[0],
        _difference_interval,
    ),
    Column(
        "beyond noise",
        "yes: worse on other texts and for other seeds, too; seeds unknown: worse on this text, but with one"
        " seed the order may be chance",
        lambda row: row.result.difference_ci95[0],
        _beyond,
    ),
)
SEEDS = Column(
    "seeds",
    "number of seeds, and bits/byte of the best and the worst seed",
    lambda row: row.bits_range[1] - row.bits_range[0],
    lambda row: f"{len(row.runs)}: {interval(row.bits_range)}" if len(row.runs) > 1 else "1",
)
UNSEEN = _figure(
    "unseen", "bits/byte of the lines that aren't in train verbatim", lambda row: row.unseen_bits_per_byte
)
UNITS = (
    _figure("bits/char", "bits per character", _mean(lambda run: run.score.bits_per_char)),
    _figure(
        "nats/token", "loss per token; not comparable between tokenizers", _mean(lambda run: run.score.nll)
    ),
    _figure("perplexity", "per token", _mean(lambda run: run.score.perplexity), lambda p: number(p, 3)),
)
MEMORISED = _figure(
    "memorised",
    "for lines, share of samples that are training lines; for running text, share of each sample taken up by"
    " its longest passage copied from train",
    lambda row: row.memorised,
    percent,
)
COST = (
    _figure("parameters", "trained parameters, or counts", lambda row: row.runs[0].parameters, "{:,}".format),
    _figure(
        "training",
        "seconds, including evaluation and compilation",
        _mean(lambda run: run.seconds),
        "{:.1f} s".format,
    ),
    _figure("tokens/s", "during training", _mean(lambda run: run.tokens_per_second), with_unit),
    _figure(
        "sampling/s",
        "tokens per second, one text at a time",
        _mean(lambda run: run.sampling_speed),
        with_unit,
    ),
    _figure(
        "memory",
        "peak memory of the training process, or of its tensors on a GPU",
        lambda row: row.peak_memory,
        memory,
    ),
)


def tables(comparison: Comparison) -> tuple[tuple[Column, ...], ...]:
    """Columns of three tables: quality, the same scores in other units, and cost."""
    rows = comparison.rows
    seeds = (SEEDS,) if any(len(row.runs) > 1 for row in rows) else ()
    unseen = (UNSEEN,) if any(row.unseen_bits_per_byte is not None for row in rows) else ()
    return QUALITY, (*seeds, *UNITS, *unseen, MEMORISED), COST


def notes(comparison: Comparison) -> list[str]:
    """Remarks on the table: failed runs, single seeds, models that have learned hardly anything, and mixtures
    scored where they were fitted."""
    lines = [_one_line(f"{failure.name} failed: {failure.reason}") for failure in comparison.failures]
    rows = comparison.rows
    single = [row.name for row in rows if len(row.runs) == 1]
    if len(rows) > 1 and single:
        names = "one seed each" if len(single) == len(rows) else f"one seed: {', '.join(single)}"
        lines.append(f"{names}; other seeds may change the order (train with compare TEXT --seeds 3)")
    untrained = [row.name for row in rows if row.is_near_uniform]
    if untrained:
        names = ", ".join(untrained)
        lines.append(f"no better than guessing, or hardly better: {names}; train longer or on more text")
    fitted = [row.name for row in rows if row.fitted_on(comparison.split)]
    if fitted:
        lines.append(f"mixture weights were fitted on val: {', '.join(fitted)}; use --split test")
    return lines
