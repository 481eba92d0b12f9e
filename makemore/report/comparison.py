"""A comparison as one HTML page: the table, charts, hard tokens, samples and recipes."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from makemore.comparison.result import Comparison, RankedModel
from makemore.evaluation.profile import RunProfile
from makemore.report.charts import Axis, Chart, Ink, axis, pareto_frontier
from makemore.report.columns import NAME, Column, notes, tables
from makemore.report.numbers import interval, memory, number, percent
from makemore.report.page import page

REMARKS = {
    "within noise": "Not significantly worse",
    "seeds unknown": "Worse on this text, for these seeds",
    "text too short": "Text too short for a comparison",
}
DOTS = "A lone dot is the score of a row without evaluations, such as a mixture."
LINES_SHOWN = 15
CHARS_SHOWN = 700
LEFT_OUT: dict[str, Any] = {"format": True, "run_id": True, "seen": True, "text": {"paths", "context"}}
"""Parts of ``config.json`` that say nothing about the recipe."""
VISIBLE = str.maketrans({" ": "␣", "\n": "↵", "\t": "⇥"})


def comparison_page(comparison: Comparison) -> str:
    """The HTML page. Every row needs a ``profile``."""
    title = f"{len(comparison.rows)} models on {comparison.source}"
    body = "".join(
        [
            f"<h1>{escape(title)}</h1>",
            _summary(comparison),
            _tables(comparison),
            f"<h2>Charts</h2>{_legend(comparison.rows)}",
            f'<div class="grid">{"".join(_charts(comparison))}</div>',
            _hard_tokens(comparison),
            _samples(comparison),
            _recipes(comparison),
        ]
    )
    return page(title, body, "sort.js")


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
            parts.append(f"{start}: {escape(', '.join(names[verdict]))}.")
    parts.append(f"Scored: {score.chars:,} characters in {score.bytes:,} bytes, each exactly once.")
    remarks = "".join(f'<p class="soft">{escape(note)}</p>' for note in notes(comparison))
    return f"<p>{' '.join(parts)}</p>{remarks}"


def _tables(comparison: Comparison) -> str:
    """A table for each group of columns: one table with all of them would be wider than most screens."""
    groups = tables(comparison)
    parts = [
        _table(comparison, (*NAME, *groups[0])),
        *(_table(comparison, (NAME[0], *g)) for g in groups[1:]),
    ]
    meanings = "".join(
        f"<li><b>{escape(column.title)}</b>: {escape(column.meaning)}</li>"
        for columns in (NAME, *groups)
        for column in columns
    )
    return f"{''.join(parts)}<details><summary>What the columns mean</summary><ul>{meanings}</ul></details>"


def _table(comparison: Comparison, columns: tuple[Column, ...]) -> str:
    head = "".join(
        f'<th scope="col"{_text_class(column)} title="{escape(column.meaning, quote=True)}">'
        f'<button type="button">{escape(column.title)}</button></th>'
        for column in columns
    )
    rows = "".join(
        f"<tr{mark}>{''.join(_cell(column, row) for column in columns)}</tr>"
        for row, mark in zip(comparison.rows, _row_classes(comparison), strict=True)
    )
    return (
        f'<div class="card wide"><table class="sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _text_class(column: Column) -> str:
    return ' class="words"' if column.is_text else ""


def _row_classes(comparison: Comparison) -> list[str]:
    return [' class="best"', *[""] * (len(comparison.rows) - 1)]


def _cell(column: Column, row: RankedModel) -> str:
    value = column.value(row)
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        value = ""
    sorted_by = escape(str(value), quote=True)
    return f'<td{_text_class(column)} data-v="{sorted_by}">{escape(column.text(row))}</td>'


def _legend(rows: Sequence[RankedModel]) -> str:
    marks = "".join(
        f'<span><svg viewBox="0 0 28 8"><path class="curve" d="M0 4h28" style="{ink.stroke}"/></svg>'
        f"{escape(row.name)}</span>"
        for row, ink in zip(rows, _inks(rows), strict=True)
    )
    return f'<div class="key">{marks}</div>'


def _inks(rows: Sequence[RankedModel]) -> list[Ink]:
    earlier: Counter[str] = Counter()
    inks = []
    for row in rows:
        inks.append(Ink(row.model, earlier[row.model]))
        earlier[row.model] += 1
    return inks


def _figure(title: str, chart: Chart, caption: str) -> str:
    return (
        f'<figure class="card"><h3>{escape(title)}</h3>{chart.svg()}'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _bits(value: float) -> str:
    return f"{value:.2f}"


def _profiles(comparison: Comparison) -> list[tuple[Ink, RankedModel, RunProfile]]:
    rows = comparison.rows
    return [
        (ink, row, row.profile) for ink, row in zip(_inks(rows), rows, strict=True) if row.profile is not None
    ]


def _charts(comparison: Comparison) -> list[str]:
    seconds = _frontier(comparison, "seconds of training", lambda row: row.mean(lambda run: run.seconds))
    parameters = _frontier(comparison, "parameters", lambda row: row.runs[0].parameters)
    return [
        _figure(
            "Validation loss by time",
            _curves(comparison, 0, "seconds"),
            f"Bits per byte, estimated at each evaluation. {DOTS}",
        ),
        _figure(
            "Validation loss by tokens",
            _curves(comparison, 1, "tokens trained on"),
            f"Bits per byte, by number of training tokens. {DOTS}",
        ),
        _figure("Quality by parameters", *parameters),
        _figure("Quality by training time", *seconds),
        _figure("Calibration", _calibration(comparison), _errors(comparison)),
        _figure("Loss by position", _positions(comparison), _positions_caption(comparison)),
    ]


def _curves(comparison: Comparison, which: int, label: str) -> Chart:
    curves = [(ink, row.name, profile.curve or [_end(row)]) for ink, row, profile in _profiles(comparison)]
    last = [curve[-1][2] for _, _, curve in curves if curve] or [1.0]
    # Cut off the first evaluations, which would flatten the rest.
    max_bits = max(last) + max(max(last) - min(last), 0.15)
    points = [point for _, _, curve in curves for point in curve]
    x = axis(label, [point[which] for point in points], log=True)
    chart = Chart(label, x, axis("bits/byte", [point[2] for point in points], text=_bits, most=max_bits))
    for ink, name, curve in curves:
        chart.line([(point[which], point[2]) for point in curve], ink, name)
    return chart


def _end(row: RankedModel) -> tuple[float, float, float]:
    """Seconds, tokens and bits per byte of a row without evaluations, such as a mixture."""
    return row.runs[0].seconds, row.runs[0].tokens, row.result.bits_per_byte


def _frontier(comparison: Comparison, label: str, value: Callable[[RankedModel], float]) -> tuple[Chart, str]:
    """The chart and its caption, which mentions the frontier only if it has several points."""
    points = [(max(float(value(row)), 1e-3), row.result.bits_per_byte) for row in comparison.rows]
    x = axis(label, [p[0] for p in points], log=True)
    chart = Chart(label, x, axis("bits/byte", [p[1] for p in points], text=_bits, below=0.3))
    best = pareto_frontier([p for p in points if math.isfinite(p[1])])
    chart.dashed(best, "frontier")
    for ink, row, point in zip(_inks(comparison.rows), comparison.rows, points, strict=True):
        chart.dot(point, ink, row.name)
        chart.label(point, ink, row.name)
    if len(best) > 1:
        return chart, "Bits per byte. The dashed line is the Pareto frontier."
    names = [row.name for row, point in zip(comparison.rows, points, strict=True) if point in best]
    return chart, f"Bits per byte. Best in both: {' and '.join(names) or 'none'}."


def _calibration(comparison: Comparison) -> Chart:
    chart = Chart(
        "calibration",
        Axis("probability of the most likely token", 0.0, 1.0, text=_bits),
        Axis("observed frequency", 0.0, 1.0, text=_bits),
    )
    chart.dashed([(0.0, 0.0), (1.0, 1.0)], "perfect calibration")
    for ink, row, profile in _profiles(comparison):
        calibration = profile.calibration
        bins = zip(calibration.share, calibration.confidence, calibration.accuracy, strict=True)
        points = [(confidence, accuracy) for share, confidence, accuracy in bins if share > 0.001]
        chart.line(points, ink, row.name)
    return chart


def _errors(comparison: Comparison) -> str:
    errors = [f"{row.name} {profile.calibration.error:.2%}" for _, row, profile in _profiles(comparison)]
    return (
        "On the dashed line, tokens are as frequent as predicted; below it, the model is overconfident. "
        f"Expected calibration error: {', '.join(errors)}."
    )


def _positions(comparison: Comparison) -> Chart:
    lines = comparison.mode == "lines"
    label = "bytes from the start of the line" if lines else "tokens of context"
    curves = [(ink, row.name, profile.positions) for ink, row, profile in _profiles(comparison)]
    points = [point for _, _, curve in curves for point in curve]
    chart = Chart(
        label,
        axis(label, [p[0] for p in points], log=not lines),
        axis("bits/byte", [p[1] for p in points], text=_bits),
    )
    for ink, name, curve in curves:
        chart.line(curve, ink, name)
    return chart


def _positions_caption(comparison: Comparison) -> str:
    if comparison.mode == "lines":
        return "Bits per byte by the position in the line where a token begins."
    return (
        "Bits per byte by number of context tokens, in windows that begin mid-text. "
        "The window of fixed-window models is always full."
    )


def _hard_tokens(comparison: Comparison) -> str:
    cards = []
    for _, row, profile in _profiles(comparison):
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
