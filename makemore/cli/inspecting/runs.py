"""``makemore runs``."""

from __future__ import annotations

from pathlib import Path

import typer

from makemore.cli.options import JSON
from makemore.cli.terminal import echo, print_json


def command(
    folder: Path = typer.Argument(Path("checkpoints"), help="Directory that holds the runs."),
    json: bool = JSON,
) -> None:
    """List runs and their scores, best first."""
    from makemore.cli.tables import runs_table
    from makemore.runs.listing import list_runs

    runs = list_runs(folder)
    if json:
        print_json({"runs": runs})
    else:
        echo(runs_table(runs))
