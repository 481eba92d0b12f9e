"""The columns of a comparison, with their displayed text and sort values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from makemore.comparison.result import Comparison, RankedModel
from makemore.report.numbers import interval, memory, number, percent, with_unit


@dataclass(frozen=True)
class Column:
    """One column: title, meaning, and the text and sort value of a row."""

    title: str
    meaning: str
    text: Callable[[RankedModel], str]
    value: Callable[[RankedModel], float | str | None]

    @property
    def is_text(self) -> bool:
        return self.title in ("run", "tokenizer")


def _one_line(text: str) -> str:
    """Replace newlines in a name, so that it can't add table rows."""
    return text.replace("\n", r"\n")


def _beyond(row: RankedModel) -> str:
    return {"worse": "yes", "within noise": "no"}.get(row.result.verdict, row.result.verdict)


def _difference(row: RankedModel) -> str:
    difference = row.result.difference
    return "–" if difference == 0 or math.isinf(difference) else f"+{number(difference)}"


def _difference_interval(row: RankedModel) -> str:
    return "–" if row.result.difference == 0 else interval(row.result.difference_ci95, sign="+")


NAME = (
    Column("run", "model or run directory", lambda row: _one_line(row.name), lambda row: row.name),
    Column(
        "tokenizer", "name of the tokenizer", lambda row: _one_line(row.tokenizer), lambda row: row.tokenizer
    ),
)
QUALITY = (
    Column(
        "bits/byte",
        "bits per byte of text, averaged over seeds; lower is better",
        lambda row: number(row.result.bits_per_byte),
        lambda row: row.result.bits_per_byte,
    ),
    Column(
        "95 % interval",
        "confidence interval of bits/byte across texts (and across seeds, if there are several)",
        lambda row: interval(row.result.ci95),
        lambda row: row.result.ci95[0],
    ),
    Column(
        "vs best",
        "bits/byte above the best model",
        _difference,
        lambda row: row.result.difference,
    ),
    Column(
        "95 % vs best",
        "interval of the difference, paired by document or block; all rows hold together with 95 %",
        _difference_interval,
        lambda row: row.result.difference_ci95[0],
    ),
    Column(
        "beyond noise",
        "yes: worse on other texts and for other seeds, too; seeds unknown: worse on this text, but with one"
        " seed the order may be chance",
        _beyond,
        lambda row: row.result.difference_ci95[0],
    ),
)
SEEDS = Column(
    "seeds",
    "number of seeds, and bits/byte of the best and the worst seed",
    lambda row: f"{len(row.runs)}: {interval(row.bits_range)}" if len(row.runs) > 1 else "1",
    lambda row: row.bits_range[1] - row.bits_range[0],
)
UNSEEN = Column(
    "unseen",
    "bits/byte of the lines that aren't in train verbatim",
    lambda row: number(row.unseen_bits_per_byte),
    lambda row: row.unseen_bits_per_byte,
)
UNITS = (
    Column(
        "bits/char",
        "bits per character",
        lambda row: number(row.mean(lambda run: run.score.bits_per_char)),
        lambda row: row.mean(lambda run: run.score.bits_per_char),
    ),
    Column(
        "nats/token",
        "loss per token; not comparable between tokenizers",
        lambda row: number(row.mean(lambda run: run.score.nll)),
        lambda row: row.mean(lambda run: run.score.nll),
    ),
    Column(
        "perplexity",
        "per token",
        lambda row: number(row.mean(lambda run: run.score.perplexity), 3),
        lambda row: row.mean(lambda run: run.score.perplexity),
    ),
)
MEMORISED = Column(
    "memorised",
    "for lines, share of samples that are training lines; for running text, share of each sample taken up by"
    " its longest passage copied from train",
    lambda row: percent(row.memorised),
    lambda row: row.memorised,
)
COST = (
    Column(
        "parameters",
        "trained parameters, or counts",
        lambda row: f"{row.runs[0].parameters:,}",
        lambda row: row.runs[0].parameters,
    ),
    Column(
        "training",
        "seconds, including evaluation and compilation",
        lambda row: f"{row.mean(lambda run: run.seconds):.1f} s",
        lambda row: row.mean(lambda run: run.seconds),
    ),
    Column(
        "tokens/s",
        "during training",
        lambda row: with_unit(row.mean(lambda run: run.tokens_per_second)),
        lambda row: row.mean(lambda run: run.tokens_per_second),
    ),
    Column(
        "sampling/s",
        "tokens per second, one text at a time",
        lambda row: with_unit(row.mean(lambda run: run.sampling_speed)),
        lambda row: row.mean(lambda run: run.sampling_speed),
    ),
    Column(
        "memory",
        "peak memory of the training process, or of its tensors on a GPU",
        lambda row: memory(row.peak_memory),
        lambda row: row.peak_memory,
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
