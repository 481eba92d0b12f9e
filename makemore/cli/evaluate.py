"""``makemore eval``."""

from __future__ import annotations

from pathlib import Path

import typer

from makemore.cli.options import DEVICE, JSON, print_json


def command(
    run: Path = typer.Argument(..., help="A run directory."),
    file: Path | None = typer.Argument(None, help="Another text: scored whole, or its --split."),
    split: str | None = typer.Option(None, "--split", help="val (default), test, train or val+test."),
    stride: int | None = typer.Option(None, "--stride", help="Step of overlapping windows (default: half)."),
    device: str = DEVICE,
    json: bool = JSON,
) -> None:
    """Score a run: every token of a split, exactly once."""
    from makemore.cli.progress import ProgressObserver, score_line
    from makemore.workflows.evaluation import evaluate
    from makemore.workflows.runs import load

    observer = ProgressObserver()
    score = evaluate(load(run, device), file, split, stride)
    if json:
        print_json({"run": str(run), **score.as_dict()})
    else:
        observer.console.stderr = False
        observer.note(score_line(score))
