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
    report: bool = typer.Option(
        True, "--report/--no-report", help="Of its own text: sample it, and say how much it recites."
    ),
    device: str = DEVICE,
    json: bool = JSON,
) -> None:
    """Score a run: every token of a split, exactly once."""
    from makemore.cli.progress import ProgressObserver, memorisation_line, score_line
    from makemore.workflows.evaluation import evaluate
    from makemore.workflows.generation import SampleRequest
    from makemore.workflows.memorisation import REPORTED
    from makemore.workflows.memorisation import report as report_on
    from makemore.workflows.runs import load

    observer = ProgressObserver()
    loaded = load(run, device)
    score = evaluate(loaded, file, split, stride)
    memorised = None
    if report and file is None:
        memorised = report_on(loaded, [SampleRequest(REPORTED[loaded.mode])])
    if json:
        extra = {} if memorised is None else {"memorisation": memorised.as_dict()}
        print_json({"run": str(run), **score.as_dict(), **extra})
        return
    observer.console.stderr = False
    observer.note(score_line(score))
    if memorised is not None:
        observer.note(memorisation_line(memorised))
