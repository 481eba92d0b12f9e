"""``makemore score``."""

from __future__ import annotations

from pathlib import Path

import typer

from makemore.cli.options import DEVICE, JSON, print_json


def command(
    run: Path = typer.Argument(..., help="Run directory."),
    file: Path = typer.Argument(..., help="Text file."),
    against: Path | None = typer.Option(
        None, "--against", help="Second run; show which run predicts each token better."
    ),
    html: Path | None = typer.Option(None, "--html", help="Write an HTML page to this file."),
    device: str = DEVICE,
    json: bool = JSON,
) -> None:
    """Show the surprisal of each token of a text."""
    from makemore.cli.surprisal import print_surprisal, print_surprisal_diff
    from makemore.evaluation.surprisal import surprisal, surprisal_diff
    from makemore.report.page import require_page_path, write_page
    from makemore.report.surprisal import surprisal_diff_page, surprisal_page
    from makemore.runs.run import load

    if html is not None:
        require_page_path(html)
    result = surprisal(load(run, device), file)
    comparison = None if against is None else surprisal_diff(result, surprisal(load(against, device), file))
    if html is not None:
        write_page(html, surprisal_page(result) if comparison is None else surprisal_diff_page(comparison))
    if json:
        print_json((comparison or result).as_dict())
    elif comparison is None:
        print_surprisal(result)
    else:
        print_surprisal_diff(comparison)
