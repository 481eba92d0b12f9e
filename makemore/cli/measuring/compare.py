"""``makemore compare``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from makemore.cli.options import DEVICE, JSON, TOKENIZER, print_json, seconds

if TYPE_CHECKING:
    from makemore.cli.progress import ProgressObserver
    from makemore.comparison.result import Comparison

TOKENIZERS = typer.Option(TOKENIZER.default, "--tokenizers", "-t", help=f"One or more of {TOKENIZER.help}")


def command(
    inputs: list[str] = typer.Argument(..., help="One text to train every rung on, or run directories."),
    models: str = typer.Option("all", "--models", help="Rungs, such as count,mlp; or all."),
    tokenizers: str = TOKENIZERS,
    seeds: int = typer.Option(1, "--seeds", help="Runs of each, with seeds from 0 on."),
    max_time: str | None = typer.Option(None, "--max-time", help="Training time of each run (default: 90s)."),
    steps: int | None = typer.Option(None, "--steps", help="Optimizer steps of each run."),
    split: str | None = typer.Option(None, "--split", help="val (default), test or val+test."),
    file: Path | None = typer.Option(None, "--file", help="A text to score all run directories on."),
    out: Path | None = typer.Option(None, "--out", "-o", help="Folder of the runs that are trained."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Train anew what has been trained."),
    device: str = DEVICE,
    csv: bool = typer.Option(False, "--csv", help="Print the table as CSV."),
    markdown: bool = typer.Option(False, "--markdown", help="Print the table as Markdown."),
    html: Path | None = typer.Option(None, "--html", help="Write a report, one page, to this file."),
    json: bool = JSON,
) -> None:
    """Train every rung on one split within the same budget, or score runs; best first.

    Runs that are there already are kept and those cut short resumed.
    """
    limit = seconds(max_time)
    from makemore.errors import UserError

    if csv + markdown + json > 1:
        raise UserError("--csv, --markdown and --json exclude each other")
    if html is not None and (html.is_dir() or html.parent.is_file()):
        raise UserError(f"--html {html}: no page can be written there")
    from makemore.cli.signals import stop_flag
    from makemore.comparison.compare import CompareRequest, compare
    from makemore.report.comparison import comparison_page
    from makemore.report.page import write_page
    from makemore.training.train import Interrupted

    request = CompareRequest(
        tuple(inputs),
        models,
        tokenizers,
        seeds,
        steps,
        limit,
        split,
        file,
        out,
        device,
        overwrite,
        html is not None,
    )
    with stop_flag() as flag:
        try:
            comparison = compare(request, observe, flag)
        except (Interrupted, KeyboardInterrupt):
            print("makemore: stopped; the same command goes on from here", file=sys.stderr)
            raise typer.Exit(flag.status) from None
    if html is not None:
        write_page(html, comparison_page(comparison))
        print(f"report: {html}", file=sys.stderr)
    if json:
        print_json(comparison.as_dict())
    else:
        print(_shown(comparison, csv, markdown))


def observe(name: str) -> ProgressObserver:
    """Watches a run, in that run's own process."""
    from makemore.cli.progress import ProgressObserver

    observer = ProgressObserver(name)
    if name:
        observer.note(f"── {name}")
    return observer


def _shown(comparison: Comparison, csv: bool, markdown: bool) -> str:
    from makemore.cli import tables
    from makemore.report.columns import notes

    if csv:
        return tables.comparison_csv(comparison)
    if markdown:
        return tables.comparison_markdown(comparison)
    return "\n".join([tables.comparison_table(comparison), *notes(comparison)])
