"""The columns of a comparison, as text for people and as numbers to sort by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from makemore.comparison.result import Comparison, Row
from makemore.report.numbers import interval, memory, number, percent, short


@dataclass(frozen=True)
class Column:
    """One column: its title, what it means, a row's text and the number it is sorted by."""

    title: str
    meaning: str
    text: Callable[[Row], str]
    value: Callable[[Row], float | str | None]

    @property
    def is_text(self) -> bool:
        return self.title in ("run", "tokenizer")


def _beyond(row: Row) -> str:
    if row.judgement.difference == 0:
        return "best"
    return "yes" if row.judgement.beyond_noise else "no"


def _difference(row: Row) -> str:
    if row.judgement.difference == 0:
        return "–"
    return f"+{number(row.judgement.difference)}"


def _difference_interval(row: Row) -> str:
    return "–" if row.judgement.difference == 0 else interval(row.judgement.difference_ci95, sign="+")


NAME = (
    Column("run", "the model, or its run directory", lambda row: row.name, lambda row: row.name),
    Column("tokenizer", "what its tokens are", lambda row: row.tokenizer, lambda row: row.tokenizer),
)
QUALITY = (
    Column(
        "bits/byte",
        "bits a byte of the text costs it, on average; less is better; the mean over seeds",
        lambda row: number(row.judgement.bits_per_byte),
        lambda row: row.judgement.bits_per_byte,
    ),
    Column(
        "95 % interval",
        "where bits/byte might have come out on another draw of text (and of seeds, where there are several)",
        lambda row: interval(row.judgement.ci95),
        lambda row: row.judgement.ci95[0],
    ),
    Column(
        "to the best",
        "how many bits/byte more than the best",
        _difference,
        lambda row: row.judgement.difference,
    ),
    Column(
        "95 % of that",
        "interval of the difference, taken document by document or block by block",
        _difference_interval,
        lambda row: row.judgement.difference_ci95[0],
    ),
    Column(
        "beyond noise",
        "yes: the interval of the difference leaves out 0",
        _beyond,
        lambda row: row.judgement.difference_ci95[0],
    ),
)
SEEDS = Column(
    "seeds",
    "how many seeds, and bits/byte of the best and the worst of them",
    lambda row: f"{len(row.runs)}: {interval(row.spread)}" if len(row.runs) > 1 else "1",
    lambda row: row.spread[1] - row.spread[0],
)
UNSEEN = Column(
    "unseen",
    "bits/byte over the lines that don't stand verbatim in train",
    lambda row: number(row.unseen_bits_per_byte),
    lambda row: row.unseen_bits_per_byte,
)
UNITS = (
    Column(
        "bits/char",
        "bits a character costs",
        lambda row: number(row.mean(lambda run: run.score.bits_per_char)),
        lambda row: row.mean(lambda run: run.score.bits_per_char),
    ),
    Column(
        "nats/token",
        "the loss; tokenizers differ in what a token is",
        lambda row: number(row.mean(lambda run: run.score.nll)),
        lambda row: row.mean(lambda run: run.score.nll),
    ),
    Column(
        "perplexity",
        "of a token",
        lambda row: number(row.mean(lambda run: run.score.perplexity), 3),
        lambda row: row.mean(lambda run: run.score.perplexity),
    ),
)
BY_HEART = Column(
    "by heart",
    "of lines: share of samples that are training lines; of running text: how much of each sample is its"
    " longest stretch that stands in train",
    lambda row: percent(row.memorised),
    lambda row: row.memorised,
)
COST = (
    Column(
        "parameters",
        "trained numbers, or counts",
        lambda row: f"{row.runs[0].parameters:,}",
        lambda row: row.runs[0].parameters,
    ),
    Column(
        "training",
        "seconds, evaluations and compilation included",
        lambda row: f"{row.mean(lambda run: run.seconds):.1f} s",
        lambda row: row.mean(lambda run: run.seconds),
    ),
    Column(
        "tokens/s",
        "in training",
        lambda row: short(row.mean(lambda run: run.tokens_per_second)),
        lambda row: row.mean(lambda run: run.tokens_per_second),
    ),
    Column(
        "sampling/s",
        "tokens a second, one text at a time",
        lambda row: short(row.mean(lambda run: run.sampling_speed)),
        lambda row: row.mean(lambda run: run.sampling_speed),
    ),
    Column(
        "memory",
        "the training process's peak, or that of its tensors on a GPU",
        lambda row: memory(row.peak_memory),
        lambda row: row.peak_memory,
    ),
)


def tables(comparison: Comparison) -> tuple[tuple[Column, ...], ...]:
    """Columns by what they tell: which is better; the same in other words; at what cost."""
    rows = comparison.rows
    seeds = (SEEDS,) if any(len(row.runs) > 1 for row in rows) else ()
    unseen = (UNSEEN,) if any(row.unseen_bits_per_byte is not None for row in rows) else ()
    return QUALITY, (*seeds, *UNITS, *unseen, BY_HEART), COST


def notes(comparison: Comparison) -> list[str]:
    """What a reader of the table should know."""
    found = [f"{failure.name} failed: {failure.reason}" for failure in comparison.failures]
    if len(comparison.rows) > 1 and all(len(row.runs) == 1 for row in comparison.rows):
        found.append("one seed each: the intervals don't say what another seed would have done (--seeds 3)")
    return found
