"""``makemore inspect``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from makemore.cli.options import JSON, print_json, printable

if TYPE_CHECKING:
    from makemore.inspection.inspect import Inspection

MARKS = {"good": "+", "note": "-", "warning": "!"}


def command(
    run: Path = typer.Argument(..., help="A run directory."),
    text: str | None = typer.Option(None, "--text", help="What attention and gates are shown on."),
    out: Path | None = typer.Option(
        None, "--out", "-o", help="Folder of the page and its pictures (default: beside the run)."
    ),
    json: bool = JSON,
) -> None:
    """Pictures of a run and a verdict in plain words: one HTML page, and PNG files."""
    from makemore.inspection.inspect import inspect
    from makemore.runs.run import load

    found = inspect(load(run, "cpu"), out, text)
    if json:
        print_json(found.as_dict())
    else:
        show(found)


def show(found: Inspection, tell: Callable[[str], None] = print) -> None:
    """The verdicts, a line each, and where the page is."""
    for verdict in found.verdicts:
        tell(printable(f"{MARKS[verdict.kind]} {verdict.text}"))
    if found.left_out:
        tell(printable(f"left out: {found.left_out}"))
    tell(printable(f"pictures: {found.page}"))
