"""A comparison as one page: the table, pictures of where models are good and at what cost, samples."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from html import escape
from typing import Any

from makemore.comparison.result import Comparison, Row
from makemore.evaluation.profile import Portrait
from makemore.report.charts import Axis, Chart, axis, frontier
from makemore.report.columns import NAME, Column, notes, tables
from makemore.report.numbers import interval, memory, number, percent, short
from makemore.report.page import page

LINES_SHOWN = 15
CHARS_SHOWN = 700
VISIBLE = {" ": "␣", "\n": "↵", "\t": "⇥", "": "(nothing)"}


def comparison_page(comparison: Comparison) -> str:
    """The whole page. Rows need their portraits."""
    title = f"{len(comparison.rows)} models on {comparison.source}"
    body = "".join(
        [
            f"<h1>{escape(title)}</h1>",
            _summary(comparison),
            _table(comparison),
            f"<h2>Pictures</h2>{_key(comparison.rows)}",
            f'<div class="grid">{"".join(_charts(comparison))}</div>',
            _hard(comparison),
            _samples(comparison),
            _recipes(comparison),
        ]
    )
    return page(title, body, "sort.js")


def _summary(comparison: Comparison) -> str:
    best, *others = comparison.rows
    score = best.runs[0].score
    near = [row.name for row in others if not row.judgement.beyond_noise]
    parts = [
        f"<b>{escape(best.name)}</b> is best on {escape(comparison.split)}: "
        f"{number(best.judgement.bits_per_byte)} bits a byte, 95 % interval {interval(best.judgement.ci95)}."
    ]
    if near:
        parts.append(f"Within noise of it: {escape(', '.join(near))}.")
    elif others:
        parts.append("All others are worse beyond noise.")
    parts.append(f"Scored: {score.chars:,} characters in {score.bytes:,} bytes, each exactly once.")
    told = "".join(f'<p class="soft">{escape(note)}</p>' for note in notes(comparison))
    return f"<p>{' '.join(parts)}</p>{told}"


def _table(comparison: Comparison) -> str:
    columns = (*NAME, *(column for part in tables(comparison) for column in part))
    head = "".join(
        f'<th scope="col"{_words(column)} title="{escape(column.meaning, quote=True)}">'
        f'<button type="button">{escape(column.title)}</button></th>'
        for column in columns
    )
    rows = "".join(
        f"<tr{mark}>{''.join(_cell(column, row) for column in columns)}</tr>"
        for row, mark in zip(comparison.rows, _marks(comparison), strict=True)
    )
    meanings = "".join(
        f"<li><b>{escape(column.title)}</b>: {escape(column.meaning)}</li>" for column in columns
    )
    return (
        f'<div class="card wide"><table class="sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        f"<details><summary>What the columns mean</summary><ul>{meanings}</ul></details>"
    )


def _words(column: Column) -> str:
    return ' class="words"' if column.is_text else ""


def _marks(comparison: Comparison) -> list[str]:
    return [' class="best"', *[""] * (len(comparison.rows) - 1)]


def _cell(column: Column, row: Row) -> str:
    value = column.value(row)
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        value = ""
    sorted_by = escape(str(value), quote=True)
    return f'<td{_words(column)} data-v="{sorted_by}">{escape(column.text(row))}</td>'


def _key(rows: Iterable[Row]) -> str:
    marks = "".join(
        f'<span><i style="background:var(--c{i % 10})"></i>{escape(row.name)}</span>'
        for i, row in enumerate(rows)
    )
    return f'<div class="key">{marks}</div>'


def _figure(title: str, chart: Chart, caption: str) -> str:
    return (
        f'<figure class="card"><h3>{escape(title)}</h3>{chart.svg()}'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _bits(value: float) -> str:
    return f"{value:.2f}"


def _portraits(comparison: Comparison) -> list[tuple[int, str, Portrait]]:
    return [(i, row.name, row.portrait) for i, row in enumerate(comparison.rows) if row.portrait is not None]


def _charts(comparison: Comparison) -> list[str]:
    seconds = _frontier(
        comparison, "seconds of training", lambda row: row.mean(lambda run: run.seconds), short
    )
    parameters = _frontier(comparison, "parameters", lambda row: row.runs[0].parameters, short)
    return [
        _figure(
            "Val while training, by time",
            _curves(comparison, 0, "seconds"),
            "Bits a byte, estimated at each evaluation.",
        ),
        _figure(
            "Val while training, by tokens",
            _curves(comparison, 1, "tokens trained on"),
            "The same, by how much was read.",
        ),
        _figure("What parameters buy", *parameters),
        _figure("What time buys", *seconds),
        _figure("Calibration", _calibration(comparison), _errors(comparison)),
        _figure("Where in the text", _positions(comparison), _positions_caption(comparison)),
    ]


def _curves(comparison: Comparison, which: int, label: str) -> Chart:
    curves = [(i, name, portrait.curve) for i, name, portrait in _portraits(comparison)]
    last = [curve[-1][2] for _, _, curve in curves if curve] or [1.0]
    # The first evaluations are off the scale of what matters.
    most = max(last) + max(max(last) - min(last), 0.15)
    points = [point for _, _, curve in curves for point in curve]
    x = axis(label, [point[which] for point in points], log=True)
    chart = Chart(label, x, axis("bits/byte", [point[2] for point in points], text=_bits, most=most))
    for i, name, curve in curves:
        chart.line([(point[which], point[2]) for point in curve], i, name)
    return chart


def _frontier(
    comparison: Comparison, label: str, figure: Callable[[Row], float], text: Callable[[float], str]
) -> tuple[Chart, str]:
    """The chart, and its caption: where one is best in both, there is no line to speak of."""
    points = [(max(float(figure(row)), 1e-3), row.judgement.bits_per_byte) for row in comparison.rows]
    x = axis(label, [p[0] for p in points], log=True, text=text)
    chart = Chart(label, x, axis("bits/byte", [p[1] for p in points], text=_bits, below=0.3))
    best = frontier([p for p in points if math.isfinite(p[1])])
    chart.dashed(best, "the frontier")
    for i, (row, point) in enumerate(zip(comparison.rows, points, strict=True)):
        chart.dot(point, i, row.name)
        chart.label(point, i, row.name)
    if len(best) > 1:
        return chart, "Bits a byte. The dashed line joins those that none betters in both."
    names = [row.name for row, point in zip(comparison.rows, points, strict=True) if point in best]
    return chart, f"Bits a byte. In both, none betters {' and '.join(names) or 'another'}."


def _calibration(comparison: Comparison) -> Chart:
    chart = Chart(
        "calibration",
        Axis("probability of the likeliest token", 0.0, 1.0, text=_bits),
        Axis("how often it came", 0.0, 1.0, text=_bits),
    )
    chart.dashed([(0.0, 0.0), (1.0, 1.0)], "as often as was said")
    for i, name, portrait in _portraits(comparison):
        found = portrait.calibration
        bins = zip(found.share, found.confidence, found.accuracy, strict=True)
        chart.line([(said, was) for share, said, was in bins if share > 0.001], i, name)
    return chart


def _errors(comparison: Comparison) -> str:
    errors = [f"{name} {portrait.calibration.error:.2%}" for _, name, portrait in _portraits(comparison)]
    return (
        "On the dashed line, tokens come as often as the model says; below it, it is too sure. "
        f"Expected calibration error: {', '.join(errors)}."
    )


def _positions(comparison: Comparison) -> Chart:
    lines = comparison.mode == "lines"
    label = "bytes into the line" if lines else "tokens of context"
    curves = [(i, name, portrait.positions) for i, name, portrait in _portraits(comparison)]
    points = [point for _, _, curve in curves for point in curve]
    chart = Chart(
        label,
        axis(label, [p[0] for p in points], log=not lines),
        axis("bits/byte", [p[1] for p in points], text=_bits),
    )
    for i, name, curve in curves:
        chart.line(curve, i, name)
    return chart


def _positions_caption(comparison: Comparison) -> str:
    if comparison.mode == "lines":
        return "Bits a byte by where in its line a token begins."
    return (
        "Bits a byte by how many tokens before it a model was shown, in windows that begin in mid-text. "
        "Models of a fixed window always have it full."
    )


def _hard(comparison: Comparison) -> str:
    cards = []
    for _, name, portrait in _portraits(comparison):
        rows = "".join(
            f'<tr><td class="words"><code>{escape(_visible(token.text))}</code></td><td>{token.bits:.2f}</td>'
            f"<td>{token.times:,}</td><td>{token.share:.1%}</td></tr>"
            for token in portrait.hard
        )
        cards.append(
            f'<div class="card"><h3>{escape(name)}</h3><table><thead><tr><th class="words">token</th>'
            "<th>bits</th><th>times</th><th>of all bits</th></tr></thead>"
            f"<tbody>{rows}</tbody></table></div>"
        )
    return _section("Tokens each finds hard", "Bits a time, on average.", cards)


def _visible(text: str) -> str:
    return VISIBLE.get(text) or text.replace("\n", "↵").replace(" ", "␣")


def _samples(comparison: Comparison) -> str:
    cards = []
    for row in comparison.rows:
        lines = comparison.mode == "lines"
        text = "\n".join(row.samples[:LINES_SHOWN]) if lines else row.samples[0][:CHARS_SHOWN]
        heart = f'<p class="soft">by heart: {percent(row.memorised)}</p>' if row.memorised is not None else ""
        cards.append(f'<div class="card"><h3>{escape(row.name)}</h3><pre>{escape(text)}</pre>{heart}</div>')
    return _section("Samples", "Seed 0, the model's own distribution.", cards)


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


def _recipe(row: Row) -> dict[str, Any]:
    config = row.runs[0].config
    kept = (
        "tokenizer",
        "train",
        "mixed",
        "precision",
        "compiled",
        "native",
        "device",
        "threads",
        "machine",
        "versions",
    )
    corpus = {k: config["corpus"][k] for k in ("name", "mode", "shares", "digests", "tokens")}
    return {
        "runs": [str(run.folder) for run in row.runs],
        "seeds": [run.seed for run in row.runs],
        "peak memory": memory(row.peak_memory),
        "model": config["model"],
        **{k: config[k] for k in kept if k in config},
        "corpus": corpus,
    }
