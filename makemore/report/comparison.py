"""A comparison as one HTML page: the table, charts, hard tokens, samples and recipes."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from makemore.comparison.result import Comparison, RankedModel
from makemore.evaluation.profile import RunProfile
from makemore.report.charts import (
    PARAMETERS,
    SECONDS,
    Axis,
    frontier_chart,
    line_chart,
    line_styles,
    vega_embed,
    with_diagonal,
    without_start,
)
from makemore.report.columns import NAME, Column, Group, listed, notes, tables
from makemore.report.numbers import interval, memory, number, percent
from makemore.report.page import page, resource
from makemore.report.scaling import forecast_chart, size_chart

if TYPE_CHECKING:
    import altair as alt

REMARKS = {
    "within noise": "Not significantly worse",
    "seeds unknown": "Worse on this text, for these seeds",
    "text too short": "Text too short for a comparison",
}
TOKENS = Axis("tokens trained on", "~s", is_log=True)
MIN_SECONDS = 1e-3
MIN_SHARE = 0.001
"""Minimum share of tokens for a calibration bin to be drawn."""
HINT = "Click a name to hide it. Drag to pan, Ctrl + wheel (or pinch) to zoom, double-click to reset."
LINES_SHOWN = 15
CHARS_SHOWN = 700
LEFT_OUT: dict[str, Any] = {"format": True, "run_id": True, "seen": True, "text": {"paths", "context"}}
"""Parts of ``config.json`` that say nothing about the recipe."""
VISIBLE = str.maketrans({" ": "␣", "\n": "↵", "\t": "⇥"})


def _count_models(comparison: Comparison) -> str:
    n_rows, n_models = len(comparison.rows), len({row.model for row in comparison.rows})
    models = f"{n_models} model{'s' * (n_models != 1)}"
    return models if n_rows == n_models else f"{n_rows} settings of {models}"


def comparison_page(comparison: Comparison) -> str:
    """The HTML page. Every row needs a ``profile``."""
    title = f"{_count_models(comparison)} on {comparison.source}"
    body = "".join(
        [
            f"<h1>{escape(title)}</h1>",
            _summary(comparison),
            *_scaling(comparison),
            _tables(comparison),
            _charts(comparison),
            _hard_tokens(comparison),
            _samples(comparison),
            _recipes(comparison),
        ]
    )
    return page(title, body, resource("sort.js"), vega_embed(), resource("charts.js"))


def _summary(comparison: Comparison) -> str:
    best, *others = comparison.rows
    score = best.runs[0].score
    names: dict[str, list[str]] = defaultdict(list)
    for row in others:
        names[row.result.verdict].append(row.name)
    parts = [
        f"<b>{escape(best.name)}</b> is best on {escape(comparison.split)}: "
        f"{number(best.result.bits_per_byte)} bits/byte (95 % interval: {interval(best.result.ci95)})."
    ]
    if others and len(names["worse"]) == len(others):
        parts.append("All others are significantly worse.")
    for verdict, start in REMARKS.items():
        if names[verdict]:
            parts.append(f"{start}: {escape(listed(names[verdict]))}.")
    adaptive = [row for row in comparison.rows if row.adaptive and row.adaptive.verdict == "best"]
    parts += [f"<b>{escape(row.name)}</b> is best while it learns from the text." for row in adaptive]
    parts.append(f"Scored: {score.chars:,} characters in {score.bytes:,} bytes, each exactly once.")
    remarks = "".join(f'<p class="soft">{escape(note)}</p>' for note in notes(comparison))
    return f"<p>{' '.join(parts)}</p>{remarks}{_stopped(comparison.stopped)}"


def _stopped(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return (
        f'<details class="soft"><summary>Stopped early, and why: {len(lines)} of the settings</summary>'
        f"<ul>{items}</ul></details>"
    )


def _tables(comparison: Comparison) -> str:
    """A table for each group of columns: one table with all of them would be wider than most screens."""
    first, *others = tables(comparison)
    groups = [first._replace(columns=(*NAME, *first.columns))]
    groups += [group._replace(columns=(NAME[0], *group.columns)) for group in others]
    columns = dict.fromkeys(column for group in groups for column in group.columns)
    meanings = "".join(
        f"<li><b>{escape(column.title)}</b>: {escape(column.meaning)}</li>" for column in columns
    )
    return (
        f"{''.join(map(_table, groups))}"
        f"<details><summary>What the columns mean</summary><ul>{meanings}</ul></details>"
    )


def _table(group: Group) -> str:
    head = "".join(
        f'<th scope="col"{_text_class(column)} title="{escape(column.meaning, quote=True)}">'
        f'<button type="button">{escape(column.title)}</button></th>'
        for column in group.columns
    )
    marks = [' class="best"', *[""] * (len(group.rows) - 1)]
    rows = "".join(
        f"<tr{mark}>{''.join(_cell(column, row) for column in group.columns)}</tr>"
        for row, mark in zip(group.rows, marks, strict=True)
    )
    return (
        f'<div class="card wide"><table class="sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _text_class(column: Column) -> str:
    return ' class="words"' if column.is_text else ""


def _cell(column: Column, row: RankedModel) -> str:
    value = column.value(row)
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        value = ""
    sorted_by = escape(str(value), quote=True)
    return f'<td{_text_class(column)} data-v="{sorted_by}">{escape(column.text(row))}</td>'


def _legend(rows: Sequence[RankedModel]) -> str:
    marks = "".join(
        f'<button type="button" aria-pressed="true"><svg viewBox="0 0 28 8" aria-hidden="true">'
        f'<path d="M0 4h28" style="stroke:{escape(style.colour, quote=True)};'
        f'stroke-dasharray:{" ".join(map(str, style.dashes))}"/></svg>{escape(row.name)}</button>'
        for row, style in zip(rows, line_styles(rows), strict=True)
    )
    return f'<div class="key" role="group" aria-label="Models in the charts">{marks}</div>'


def _charts(comparison: Comparison) -> str:
    rows = comparison.rows
    figures = [
        *_curves(rows),
        *_frontiers(rows),
        _calibration(rows),
        _positions(comparison),
    ]
    hint = f'<p class="soft screen">{HINT}</p>'
    return f'<h2>Charts</h2>{_legend(rows)}{hint}<div class="grid">{"".join(figures)}</div>'


def _figure(title: str, chart: alt.LayerChart, caption: str) -> str:
    spec = json.dumps(chart.properties(description=title).to_dict(), ensure_ascii=False)
    spec = spec.replace("<", r"\u003c")
    return (
        f'<figure class="card"><h3>{escape(title)}</h3><div class="chart"></div>'
        f'<script type="application/json">{spec}</script>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _profiles(rows: Sequence[RankedModel]) -> list[RunProfile]:
    return [row.profile for row in rows if row.profile is not None]


def _curves(rows: Sequence[RankedModel]) -> list[str]:
    # A row without evaluations, such as a mixture, has a single point: its score.
    curves = [
        profile.curve or [(row.runs[0].seconds, row.runs[0].tokens, row.result.bits_per_byte)]
        for row, profile in zip(rows, _profiles(rows), strict=True)
    ]
    seconds = [[(s, bits) for s, _, bits in curve] for curve in curves]
    tokens = [[(n, bits) for _, n, bits in curve] for curve in curves]
    caption = "Bits per byte at each evaluation, estimated. A single dot is a final score: no evaluations."
    return [
        _figure("Validation loss by time", without_start(line_chart(rows, seconds, SECONDS)), caption),
        _figure("Validation loss by tokens", without_start(line_chart(rows, tokens, TOKENS)), caption),
    ]


def _frontiers(rows: Sequence[RankedModel]) -> list[str]:
    caption = "Bits per byte. The dashed line is the Pareto frontier."
    parameters = [row.runs[0].parameters for row in rows]
    seconds = [max(row.mean(lambda run: run.seconds), MIN_SECONDS) for row in rows]
    return [
        _figure("Quality by parameters", frontier_chart(rows, parameters, PARAMETERS), caption),
        _figure("Quality by training time", frontier_chart(rows, seconds, SECONDS), caption),
    ]


def _scaling(comparison: Comparison) -> list[str]:
    laws, rows = comparison.laws, comparison.rows
    if not laws:
        return []
    caption = "Bits per byte. Dots are runs; dashed: the fitted law"
    by_time = f"{caption} for the best size, with its 95 % interval, up to ten times the longest training."
    by_size = f"{caption} after four times from the shortest to the longest training."
    return [
        '<div class="grid">',
        _figure("Forecast by training time", forecast_chart(laws, rows), by_time),
        _figure("Loss by size", size_chart(laws, rows), by_size),
        "</div>",
    ]


def _calibration(rows: Sequence[RankedModel]) -> str:
    calibrations = [profile.calibration for profile in _profiles(rows)]
    bins = [zip(c.confidence, c.accuracy, c.share, strict=True) for c in calibrations]
    curves = [[(x, y) for x, y, share in row if share > MIN_SHARE] for row in bins]
    chart = line_chart(rows, curves, Axis("probability of the most likely token"), Axis("observed frequency"))
    errors = listed([f"{row.name} {c.error:.2%}" for row, c in zip(rows, calibrations, strict=True)])
    return _figure(
        "Calibration",
        with_diagonal(chart),
        "On the dashed line, tokens are as frequent as predicted; below it, the model is overconfident. "
        f"Expected calibration error: {errors}.",
    )


def _positions(comparison: Comparison) -> str:
    if comparison.mode == "lines":
        x = Axis("bytes from the start of the line", "~s")
        caption = "Bits per byte by the position in the line where a token begins."
    else:
        x = Axis("tokens of context", "~s", is_log=True)
        caption = (
            "Bits per byte by number of context tokens, in windows that begin mid-text. "
            "The window of fixed-window models is always full."
        )
    curves = [profile.positions for profile in _profiles(comparison.rows)]
    return _figure("Loss by position", line_chart(comparison.rows, curves, x), caption)


def _hard_tokens(comparison: Comparison) -> str:
    cards = []
    for row, profile in zip(comparison.rows, _profiles(comparison.rows), strict=True):
        rows = "".join(
            f'<tr><td class="words"><code>{escape(_visible(token.text))}</code></td><td>{token.bits:.2f}</td>'
            f"<td>{token.times:,}</td><td>{token.share:.1%}</td></tr>"
            for token in profile.hard
        )
        cards.append(
            f'<div class="card"><h3>{escape(row.name)}</h3><table><thead><tr><th class="words">token</th>'
            "<th>bits</th><th>times</th><th>share of bits</th></tr></thead>"
            f"<tbody>{rows}</tbody></table></div>"
        )
    return _section("Hardest tokens", "Bits per occurrence, on average.", cards)


def _visible(text: str) -> str:
    return text.translate(VISIBLE) or "(empty)"


def _samples(comparison: Comparison) -> str:
    cards = []
    for row in comparison.rows:
        lines = comparison.mode == "lines"
        text = "\n".join(row.samples[:LINES_SHOWN]) if lines else row.samples[0][:CHARS_SHOWN]
        note = f'<p class="soft">memorised: {percent(row.memorised)}</p>' if row.memorised is not None else ""
        cards.append(f'<div class="card"><h3>{escape(row.name)}</h3><pre>{escape(text)}</pre>{note}</div>')
    return _section("Samples", "Seed 0, from the unmodified distribution.", cards)


def _section(title: str, about: str, cards: list[str]) -> str:
    if not cards:
        return ""
    return f'<h2>{escape(title)}</h2><p class="soft">{about}</p><div class="grid">{"".join(cards)}</div>'


def _recipes(comparison: Comparison) -> str:
    parts = []
    for row in comparison.rows:
        text = json.dumps(_recipe(row), indent=1, ensure_ascii=False)
        parts.append(
            f'<details class="card"><summary>{escape(row.name)}</summary><pre>{escape(text)}</pre></details>'
        )
    return f"<h2>Recipes</h2>{''.join(parts)}"


def _recipe(row: RankedModel) -> dict[str, Any]:
    config = row.runs[0].config
    return {
        "runs": [str(run.folder) for run in row.runs],
        "seeds": [run.seed for run in row.runs],
        "peak memory": memory(row.peak_memory),
        **config.model_dump(exclude=LEFT_OUT),
    }
