"""``makemore inspect``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from makemore.cli.options import JSON, RUN
from makemore.cli.terminal import echo, print_json

if TYPE_CHECKING:
    from makemore.report.inspection import Inspection

MARKS = {"good": "+", "note": "-", "warning": "!"}


def command(
    run: Path = RUN,
    text: str | None = typer.Option(None, "--text", help="Text for the attention and gate plots."),
    out: Path | None = typer.Option(
        None, "--out", "-o", help="Directory for the page and PNG files (default: beside the run)."
    ),
    json: bool = JSON,
) -> None:
    """Plot the inside of a run and report problems.

    Writes one HTML page and PNG files, and prints the findings.
    """
    from makemore.report.inspection import inspect
    from makemore.runs.run import load

    inspection = inspect(load(run, "cpu"), out, text)
    if json:
        print_json(inspection.as_dict())
    else:
        show(inspection)


def show(inspection: Inspection, write: Callable[[str], None] = echo) -> None:
    """Print the findings, one per line, and the path of the page."""
    for finding in inspection.findings:
        write(f"{MARKS[finding.kind]} {finding.text}")
    if inspection.left_out:
        write(f"left out: {inspection.left_out}")
    write(f"pictures: {inspection.page}")
