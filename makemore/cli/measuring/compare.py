"""``makemore compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from makemore.cli.options import DEVICE, JSON, TOKENIZER
from makemore.cli.terminal import echo, print_json

if TYPE_CHECKING:
    from makemore.cli.progress import ProgressObserver
    from makemore.comparison.result import Comparison

TOKENIZERS = typer.Option(TOKENIZER.default, "--tokenizers", "-t", help=f"Comma-separated: {TOKENIZER.help}")


def command(
    inputs: list[str] = typer.Argument(..., help="Text to train all models on, or run directories to rank."),
    models: str = typer.Option("all", "--models", help="Comma-separated models, such as count,mlp; or all."),
    tokenizers: str = TOKENIZERS,
    seeds: int = typer.Option(1, "--seeds", help="Runs per model, with seeds 0, 1, 2 and so on."),
    max_time: str | None = typer.Option(None, "--max-time", help="Training time per run (default: 90s)."),
    steps: int | None = typer.Option(None, "--steps", help="Optimizer steps per run."),
    grid: list[str] = typer.Option(
        [],
        "--grid",
        help="A setting and its values, such as model.n_layer=2,4; repeat it for all combinations.",
    ),
    total_time: str | None = typer.Option(
        None,
        "--budget-total",
        help="Total training time, such as 30m, without start-up and scoring; after each round, only the "
        "better half goes on.",
    ),
    scaling: bool = typer.Option(
        False,
        "--scaling",
        help="Train each model at 4 widths (or --grid) with 4 budgets, and forecast ten times the longest.",
    ),
    split: str | None = typer.Option(None, "--split", help="val (default), test or val+test."),
    file: Path | None = typer.Option(None, "--file", help="Text to score all run directories on."),
    adaptive: bool = typer.Option(
        False, "--adaptive", help="Also rank the runs while they learn from the text they are scored on."
    ),
    out: Path | None = typer.Option(None, "--out", "-o", help="Parent directory for the trained runs."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Retrain finished runs."),
    device: str = DEVICE,
    csv: bool = typer.Option(False, "--csv", help="Print the table as CSV."),
    markdown: bool = typer.Option(False, "--markdown", help="Print the table as Markdown."),
    html: Path | None = typer.Option(None, "--html", help="Write an HTML report to this file."),
    best: Path | None = typer.Option(
        None, "--best", help="Write the best run's settings to this TOML file, for train --config."
    ),
    json: bool = JSON,
) -> None:
    """Train and rank models on one text, or rank runs.

    All runs get the same split and, except with --budget-total, the same budget. With --grid, every
    combination of settings is trained. Finished runs are reused; interrupted runs are resumed.
    """
    from makemore.settings.train import parse_duration

    limit, total = parse_duration(max_time), parse_duration(total_time)
    from makemore.errors import UserError, require_packages

    if csv + markdown + json > 1:
        raise UserError("--csv, --markdown and --json can't be combined; choose one")
    from makemore.cli.signals import stop_flag
    from makemore.comparison.best import require_best_path, write_best
    from makemore.comparison.compare import CompareRequest, compare
    from makemore.report.comparison import comparison_page
    from makemore.report.page import require_page_path, write_page
    from makemore.training.records import TrainingInterrupted

    if html is not None:
        require_packages("--html", ("altair", "vl_convert"), extra="report")
        require_page_path(html)
    if best is not None:
        require_best_path(best)
    request = CompareRequest(
        inputs=tuple(inputs),
        models=models,
        tokenizers=tokenizers,
        seeds=seeds,
        steps=steps,
        max_time=limit,
        grid=tuple(grid),
        total_time=total,
        scaling=scaling,
        split=split,
        file=file,
        out=out,
        device=device,
        overwrite=overwrite,
        adaptive=adaptive,
        with_details=html is not None,
    )
    with stop_flag() as flag:
        try:
            comparison = compare(request, observe, flag)
        except (TrainingInterrupted, KeyboardInterrupt):
            echo("makemore: stopped; run the same command again to resume", err=True)
            raise typer.Exit(flag.status) from None
    if html is not None:
        write_page(html, comparison_page(comparison))
        echo(f"report: {html}", err=True)
    _show(comparison, csv=csv, markdown=markdown, json=json)
    if best is not None:
        echo(f"settings of {write_best(best, comparison)}: {best}", err=True)


def _show(comparison: Comparison, *, csv: bool, markdown: bool, json: bool) -> None:
    from makemore.cli import tables
    from makemore.report.columns import notes

    if json:
        print_json(comparison.as_dict())
        return
    show = (
        tables.comparison_csv if csv else tables.comparison_markdown if markdown else tables.comparison_table
    )
    echo(show(comparison))
    for note in [*comparison.stopped, *notes(comparison)]:
        echo(note, err=csv or markdown)


def observe(name: str) -> ProgressObserver:
    """Create the progress observer of a run, in the process that trains it."""
    from makemore.cli.progress import ProgressObserver

    observer = ProgressObserver(name)
    if name:
        observer.note(f"── {name}")
    return observer
