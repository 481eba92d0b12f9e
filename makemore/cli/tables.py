"""Tables for a terminal."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from makemore.cli.progress import short

if TYPE_CHECKING:
    from makemore.gradcheck import GradRow
    from makemore.workflows.comparison import Row
    from makemore.workflows.memorisation import Memorisation, Originality

COLUMNS = (
    "run",
    "parameters",
    "seconds",
    "tokens/s",
    "nats/token",
    "perplexity",
    "bits/char",
    "95 % interval",
)


def gradcheck_table(rows: list[GradRow]) -> str:
    """One line a gradient: is it exact, near, how far off at most."""
    table = Table("gradient of", "against", "exact", "approximate", "largest difference")
    for row in rows:
        table.add_row(
            row.name,
            row.reference,
            "yes" if row.exact else "no",
            "yes" if row.approximate else "NO",
            f"{row.max_difference:.2e}",
        )
    return _rendered(table)


def _rendered(table: Table) -> str:
    out = io.StringIO()
    Console(file=out, width=110).print(table)
    return out.getvalue().rstrip()


def comparison_table(rows: list[Row]) -> str:
    """One line a run, as sorted by ``compare``."""
    table = Table(*COLUMNS)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        low, high = row.score.ci95_bits_per_char
        table.add_row(
            row.name,
            f"{row.parameters:,}",
            f"{row.seconds:.1f}",
            short(row.tokens / max(row.seconds, 1e-9)),
            f"{row.score.nll:.4f}",
            f"{row.score.perplexity:.3f}",
            f"{row.score.bits_per_char:.4f}",
            f"{low:.4f} to {high:.4f}",
        )
    return _rendered(table)


def memorisation_table(result: Memorisation) -> str:
    """Figures of the samples, and of held-out text where there is some."""
    columns = {"samples": _originality(result.samples)}
    if result.held_out is not None:
        columns["held-out"] = _originality(result.held_out)
    table = Table("", *columns)
    for column in table.columns[1:]:
        column.justify = "right"
    for label in columns["samples"]:
        table.add_row(label, *(figures[label] for figures in columns.values()))
    return _rendered(table)


def _originality(figures: Originality) -> dict[str, str]:
    cells = {"texts": f"{figures.texts:,}"}
    if figures.verbatim is not None:
        cells["verbatim training lines"] = f"{figures.verbatim:.1%}"
    if figures.copied_mean is not None:
        cells["longest run copied from train, mean"] = f"{figures.copied_mean:.1f} characters"
        cells["longest run copied from train, most"] = f"{figures.copied_max} characters"
    cells["texts that are repeated"] = f"{figures.repeated:.1%}"
    unit = "characters" if figures.copied_mean is None else "words"
    return cells | {f"distinct {n}-grams of {unit}": f"{share:.1%}" for n, share in figures.distinct.items()}
