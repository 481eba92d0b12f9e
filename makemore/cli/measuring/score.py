"""``makemore score``."""

from __future__ import annotations

from pathlib import Path

import typer

from makemore.cli.options import DEVICE, JSON, RUN
from makemore.cli.terminal import print_json


def command(
    run: Path = RUN,
    file: Path | None = typer.Argument(None, help="Text file, or '-' for stdin."),
    text: str | None = typer.Option(None, "--text", help="Text to score instead of FILE."),
    against: Path | None = typer.Option(
        None, "--against", help="Second run; show which run predicts each token better."
    ),
    adaptive: bool = typer.Option(
        False, "--adaptive", help="The models learn from each part of the text once they have predicted it."
    ),
    html: Path | None = typer.Option(None, "--html", help="Write an HTML page to this file."),
    device: str = DEVICE,
    json: bool = JSON,
) -> None:
    """Show the surprisal of each token of a text."""
    from makemore.cli.surprisal import print_surprisal, print_surprisal_diff
    from makemore.errors import UserError
    from makemore.evaluation.surprisal import surprisal, surprisal_diff
    from makemore.report.page import require_page_path, write_page
    from makemore.report.surprisal import surprisal_diff_page, surprisal_page
    from makemore.runs.run import load

    if html is not None:
        require_page_path(html)
    if file is not None and text is not None:
        raise UserError("give FILE or --text, not both")
    if file is None and not text:
        raise UserError("give a text to score: FILE, '-' for stdin, or --text TEXT")
    loaded = load(run, device)
    scored = text if text else loaded.text(file).string() if str(file) == "-" else file
    assert scored is not None
    result = surprisal(loaded, scored, adaptive=adaptive)
    comparison = None
    if against is not None:
        comparison = surprisal_diff(result, surprisal(load(against, device), scored, adaptive=adaptive))
    if html is not None:
        write_page(html, surprisal_page(result) if comparison is None else surprisal_diff_page(comparison))
    if json:
        print_json((comparison or result).as_dict())
    elif comparison is None:
        print_surprisal(result)
    else:
        print_surprisal_diff(comparison)
