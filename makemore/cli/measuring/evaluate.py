"""``makemore eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from makemore.cli.options import DEVICE, JSON, print_json

if TYPE_CHECKING:
    from makemore.evaluation.evaluate import DynamicScore


def command(
    run: Path = typer.Argument(..., help="A run directory."),
    file: Path | None = typer.Argument(None, help="Another text: scored whole, or its --split."),
    split: str | None = typer.Option(None, "--split", help="val (default), test, train or val+test."),
    stride: int | None = typer.Option(None, "--stride", help="Step of overlapping windows (default: half)."),
    report: bool = typer.Option(
        True, "--report/--no-report", help="Of its own text: sample it, and say how much it recites."
    ),
    dynamic: bool = typer.Option(
        False, "--dynamic", help="Beside the plain score, that of weights that follow the text."
    ),
    dynamic_lr: float | None = typer.Option(None, "--dynamic-lr", help="How fast they follow it."),
    device: str = DEVICE,
    json: bool = JSON,
) -> None:
    """Score a run: every token of a split, exactly once."""
    from makemore.cli.progress import ProgressObserver, memorisation_line, score_line
    from makemore.errors import UserError
    from makemore.evaluation.dynamic import DynamicSettings
    from makemore.evaluation.evaluate import evaluate, evaluate_dynamic
    from makemore.evaluation.memorization import REPORTED
    from makemore.evaluation.memorization import report as report_on
    from makemore.runs.run import load
    from makemore.sampling.text import SampleRequest

    if dynamic_lr is not None and not dynamic:
        raise UserError("--dynamic-lr goes with --dynamic")
    settings = DynamicSettings() if dynamic_lr is None else DynamicSettings(lr=dynamic_lr)
    loaded = load(run, device)
    score = evaluate(loaded, file, split, stride)
    memorised = None
    if report and file is None:
        memorised = report_on(loaded, [SampleRequest(REPORTED[loaded.mode])])
    followed = evaluate_dynamic(loaded, score, file, split, stride, settings) if dynamic else None
    if json:
        extra = {} if memorised is None else {"memorisation": memorised.as_dict()}
        apart = {} if followed is None else {"dynamic": followed.as_dict()}
        print_json({"run": str(run), **score.as_dict(), **extra, **apart})
        return
    observer = ProgressObserver()
    observer.console.stderr = False
    observer.note(score_line(score))
    if memorised is not None:
        observer.note(memorisation_line(memorised))
    if followed is not None:
        observer.note(dynamic_line(followed))


def dynamic_line(followed: DynamicScore) -> str:
    """The score of weights that follow the text, and how far from the plain one."""
    from makemore.cli.progress import score_line

    low, high = followed.difference_ci95
    return (
        f"dynamic evaluation (weights follow the text; not comparable with plain scores):\n"
        f"{score_line(followed.score)}\n"
        f"{followed.difference:+.4f} bits/byte [{low:+.4f}, {high:+.4f}] from the plain score"
    )
