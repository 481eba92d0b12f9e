"""Format tables for the terminal."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from makemore.cli.console import Console
from makemore.report.columns import NAME, tables
from makemore.report.numbers import number
from makemore.runtime.characters import clip

if TYPE_CHECKING:
    from makemore.comparison.result import Comparison
    from makemore.evaluation.memorization import MemorizationReport, Originality
    from makemore.inspection.gradcheck import GradRow
    from makemore.runs.listing import RunSummary


MAX_WIDTH = 10_000
"""Columns, so that nothing is cut off: a narrow terminal breaks lines itself."""
MAX_TEXT_NAME = 40


def gradcheck_table(rows: list[GradRow]) -> str:
    """Format one row per gradient: exact or approximate match, and the largest difference."""
    table = Table("gradient of", "against", "exact", "approximate", "largest difference")
    for row in rows:
        table.add_row(
            row.name,
            row.reference,
            "yes" if row.exact else "no",
            "yes" if row.approximate else "NO",
            f"{row.max_difference:.2e}",
        )
    return _render(table)


def _render(table: Table) -> str:
    out = io.StringIO()
    # Names may contain brackets or colons, which are not markup.
    # Without styles, also where FORCE_COLOR is set: printing the string would escape their codes.
    console = Console(
        file=out, width=MAX_WIDTH, markup=False, emoji=False, highlight=False, force_terminal=False
    )
    console.print(table)
    return out.getvalue().rstrip()


def comparison_table(comparison: Comparison) -> str:
    """Format a comparison with one row per model, best first: scores, other metrics, time and memory."""
    scored = dict.fromkeys([comparison.source, comparison.split])
    parts = [f"{', '.join(scored)}: bits/byte, best first"]
    for group in tables(comparison):
        columns = (*NAME, *group.columns)
        table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        for column in columns:
            table.add_column(column.title, justify="left" if column.is_text else "right", no_wrap=True)
        for row in group.rows:
            table.add_row(*(column.text(row) for column in columns))
        parts.append(_render(table))
    return "\n\n".join(parts)


def runs_table(runs: Sequence[RunSummary]) -> str:
    """Format one row per run: model, text, score and age."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("run", no_wrap=True)
    for title in ("model", "tokenizer", "text", "bits/byte", "on", "age"):
        table.add_column(title, justify="right" if title in ("bits/byte", "age") else "left", no_wrap=True)
    for run in runs:
        bits = "–" if run.bits_per_byte is None else number(run.bits_per_byte)
        state = run.split or ("damaged" if run.problem else "no result")
        state += f", first {run.share:.0%}" if run.share < 0.995 else ""
        text = clip(run.text, MAX_TEXT_NAME)
        table.add_row(run.run, run.model, run.tokenizer, text, bits, state, _age(run.modified))
    return _render(table)


def _age(modified: float) -> str:
    seconds = max(0.0, time.time() - modified)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def comparison_csv(comparison: Comparison) -> str:
    """Format one line per model, in full precision; pairs become two columns, ``_low`` and ``_high``."""
    out = io.StringIO()
    rows = [{**_flatten(row.as_dict()), **comparison.settings(row)} for row in comparison.rows]
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().rstrip()


def _flatten(figures: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in figures.items():
        if isinstance(value, list):
            flat[f"{key}_low"], flat[f"{key}_high"] = value
        else:
            flat[key] = value
    return flat


def comparison_markdown(comparison: Comparison) -> str:
    """Format one Markdown table with all columns."""
    groups = tables(comparison)
    columns = list(dict.fromkeys([*NAME, *(column for group in groups for column in group.columns)]))
    lines = [[column.title for column in columns]]
    lines.append(["---" if column.is_text else "---:" for column in columns])
    lines += [[column.text(row).replace("|", r"\|") for column in columns] for row in comparison.rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def memorisation_table(result: MemorizationReport) -> str:
    """Format memorisation statistics of the samples, and of held-out text if available."""
    columns = {"samples": _originality(result.samples)}
    if result.held_out is not None:
        columns["held-out"] = _originality(result.held_out)
    table = Table("", *columns)
    for column in table.columns[1:]:
        column.justify = "right"
    for label in columns["samples"]:
        table.add_row(label, *(figures[label] for figures in columns.values()))
    return _render(table)


def _originality(figures: Originality) -> dict[str, str]:
    cells = {"texts": f"{figures.texts:,}"}
    if figures.verbatim is not None:
        cells["verbatim training lines"] = f"{figures.verbatim:.1%}"
    if figures.copied_mean is not None:
        cells["longest run copied from train, mean"] = f"{figures.copied_mean:.1f} characters"
        cells["longest run copied from train, max"] = f"{figures.copied_max} characters"
    cells["repeated texts"] = f"{figures.repeated:.1%}"
    unit = "characters" if figures.copied_mean is None else "words"
    return cells | {f"distinct {n}-grams of {unit}": f"{share:.1%}" for n, share in figures.distinct.items()}
