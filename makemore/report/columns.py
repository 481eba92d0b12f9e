"""The columns of a comparison, with their displayed text and sort values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from makemore.comparison.differences import setting_text
from makemore.comparison.result import Comparison, RankedModel, ScoredRun
from makemore.evaluation.ranking import PairedResult
from makemore.report.numbers import interval, memory, number, percent, with_unit

Value = Callable[[RankedModel], float | str | None]
ResultOf = Callable[[RankedModel], PairedResult | None]
ShowResult = Callable[[PairedResult], str]
MAX_LISTED = 8
"""Names in one remark."""
MAX_SETTINGS_WIDTH = 80
"""Width of the settings in a table, in characters."""


@dataclass(frozen=True)
class Column:
    """One column: title, meaning, and the sort value and text of a row."""

    title: str
    meaning: str
    value: Value
    text: Callable[[RankedModel], str]
    is_text: bool = False


def _figure(title: str, meaning: str, value: Value, show: Callable[[Any], str] = number) -> Column:
    """A column whose text is its value, formatted by ``show``."""
    return Column(title, meaning, value, lambda row: show(value(row)))


def _mean(metric: Callable[[ScoredRun], float]) -> Value:
    return lambda row: row.mean(metric)


def _one_line(text: str) -> str:
    """Replace newlines in a name, so that it can't add table rows."""
    return text.replace("\n", r"\n")


def _difference(difference: float | None) -> str:
    return "–" if not difference or math.isinf(difference) else f"+{number(difference)}"


def _words(title: str, meaning: str, text: Callable[[RankedModel], str]) -> Column:
    return Column(title, meaning, text, lambda row: _one_line(text(row)), is_text=True)


NAME = (
    _words("run", "model or run directory", lambda row: row.name),
    _words("tokenizer", "name of the tokenizer", lambda row: row.tokenizer),
)


def _ranking(result_of: ResultOf, titles: Sequence[str], about: str = "") -> tuple[Column, ...]:
    """Columns of one kind of score, and of its comparison with the best."""
    title = iter(titles)

    def column(meaning: str, value: Callable[[PairedResult], Any], show: ShowResult) -> Column:
        def value_of(row: RankedModel) -> float | str | None:
            result = result_of(row)
            return None if result is None else value(result)

        def text_of(row: RankedModel) -> str:
            result = result_of(row)
            return "" if result is None else show(result)

        return Column(next(title), about + meaning, value_of, text_of)

    return (
        column(
            "bits per byte of text, averaged over seeds; lower is better",
            lambda result: result.bits_per_byte,
            lambda result: number(result.bits_per_byte),
        ),
        column(
            "confidence interval of bits/byte across texts (and across seeds, if there are several)",
            lambda result: result.ci95[0],
            lambda result: interval(result.ci95),
        ),
        column(
            "bits/byte above the best model",
            lambda result: result.difference,
            lambda result: _difference(result.difference),
        ),
        column(
            "interval of the difference, paired by document or block; all rows hold together with 95 %",
            lambda result: result.difference_ci95[0],
            lambda result: "–" if result.difference == 0 else interval(result.difference_ci95, sign="+"),
        ),
        column(
            "yes: worse on other texts and for other seeds, too; seeds unknown: worse on this text, but with"
            " one seed the order may be chance",
            lambda result: result.difference_ci95[0],
            lambda result: {"worse": "yes", "within noise": "no"}.get(result.verdict, result.verdict),
        ),
    )


TITLES = ("bits/byte", "95 % interval", "vs best", "95 % vs best", "beyond noise")
QUALITY = _ranking(lambda row: row.result, TITLES)
ADAPTIVE = _ranking(
    lambda row: row.adaptive,
    ("adaptive", "adaptive 95 %", *(f"adaptive {title}" for title in TITLES[2:])),
    "of models that learn from the text while they are scored: ",
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


def _setting(name: str) -> Column:
    """A setting that differs between the rows. Numbers are sorted as numbers."""

    def value(row: RankedModel) -> float | str | None:
        text = setting_text(row.config, name)
        try:
            return float(text)
        except ValueError:
            return text

    def text(row: RankedModel) -> str:
        return _one_line(setting_text(row.config, name))

    return Column(name, "differs between the runs", value, text)


def _settings(comparison: Comparison) -> Iterator[tuple[Column, ...]]:
    """The settings that differ, in tables that fit on a line of a terminal."""
    columns: list[Column] = []
    room = MAX_SETTINGS_WIDTH
    for column in map(_setting, comparison.differences):
        width = 2 + max(len(text) for text in (column.title, *map(column.text, comparison.rows)))
        if columns and width > room:
            yield tuple(columns)
            columns, room = [], MAX_SETTINGS_WIDTH
        columns.append(column)
        room -= width
    if columns:
        yield tuple(columns)


class Group(NamedTuple):
    """The columns of one table, and its rows, best first."""

    columns: tuple[Column, ...]
    rows: list[RankedModel]


def tables(comparison: Comparison) -> list[Group]:
    """Quality, adaptive scores if any, frozen scores in other units, cost, and the settings that differ."""
    rows = comparison.rows
    seeds = (SEEDS,) if any(len(row.runs) > 1 for row in rows) else ()
    unseen = (UNSEEN,) if any(row.unseen_bits_per_byte is not None for row in rows) else ()
    others = [Group((*seeds, *UNITS, *unseen, MEMORISED), rows), Group(COST, rows)]
    others += [Group(columns, rows) for columns in _settings(comparison)]
    scored = [(row.adaptive.bits_per_byte, i, row) for i, row in enumerate(rows) if row.adaptive is not None]
    if not scored:
        return [Group(QUALITY, rows), *others]
    adaptive = Group(ADAPTIVE, [row for _, _, row in sorted(scored)])
    return [Group((QUALITY[0], ADAPTIVE[0], *QUALITY[1:]), rows), adaptive, *others]


def listed(names: Sequence[str]) -> str:
    """Names with commas; of many, the first ones and how many more there are."""
    shown, more = names[:MAX_LISTED], len(names) - MAX_LISTED
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def notes(comparison: Comparison) -> list[str]:
    """Remarks on the table: failed runs, single seeds, models that have learned hardly anything,
    missing adaptive scores, and mixtures scored where they were fitted."""
    lines = [_one_line(f"{failure.name} failed: {failure.reason}") for failure in comparison.failures]
    lines += map(_one_line, comparison.not_fitted)
    lines += [line for law in comparison.laws for line in law.lines()]
    rows = comparison.rows
    single = [row.name for row in rows if len(row.runs) == 1]
    if len(rows) > 1 and single:
        names = "one seed each" if len(single) == len(rows) else f"one seed: {listed(single)}"
        lines.append(f"{names}; other seeds may change the order (train with compare TEXT --seeds 3)")
    untrained = [row.name for row in rows if row.is_near_uniform]
    if untrained:
        names = listed(untrained)
        lines.append(f"no better than guessing, or hardly better: {names}; train longer or on more text")
    lines += [
        _one_line(f"{row.name} has no adaptive score: {row.not_adaptive}") for row in rows if row.not_adaptive
    ]
    fitted = [row.name for row in rows if row.fitted_on(comparison.split)]
    if fitted:
        lines.append(f"mixture weights were fitted on val: {', '.join(fitted)}; use --split test")
    return lines
