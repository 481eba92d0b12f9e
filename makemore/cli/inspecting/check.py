"""``makemore check``."""

from __future__ import annotations

from pathlib import Path

import typer

from makemore.cli.options import JSON, RUN
from makemore.cli.terminal import echo, print_json


def command(run: Path = RUN, json: bool = JSON) -> None:
    """Check a run's files for damage."""
    from makemore.errors import UserError
    from makemore.runs.verification import check_run

    problems = check_run(run)
    if json:
        print_json({"run": str(run), "problems": problems})
        raise typer.Exit(2 if problems else 0)
    if problems:
        raise UserError("; ".join(problems))
    echo(f"{run}: all files are intact")
