"""``makemore check``."""

from __future__ import annotations

from pathlib import Path

import typer

from makemore.cli.options import JSON, print_json


def command(
    run: Path = typer.Argument(..., help="Run directory."),
    json: bool = JSON,
) -> None:
    """Check a run's files for damage."""
    from makemore.errors import UserError
    from makemore.runs.verification import check_run

    problems = check_run(run)
    if json:
        print_json({"run": str(run), "problems": problems})
        raise typer.Exit(2 if problems else 0)
    if problems:
        raise UserError("; ".join(problems))
    print(f"{run}: all files are intact")
