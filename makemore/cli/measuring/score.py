"""``makemore score``."""

from __future__ import annotations

from pathlib import Path

import typer

from makemore.cli.options import DEVICE, JSON, print_json


def command(
    run: Path = typer.Argument(..., help="A run directory."),
    file: Path = typer.Argument(..., help="A text."),
    against: Path | None = typer.Option(
        None, "--against", help="Another run: show which knows better where."
    ),
    html: Path | None = typer.Option(None, "--html", help="Write a page to this file."),
    device: str = DEVICE,
    json: bool = JSON,
) -> None:
    """Show what each piece of a text cost: the surprisal of its tokens."""
    from makemore.cli.surprisal import print_duel, print_surprisal
    from makemore.evaluation.surprisal import duel, surprisal
    from makemore.report.page import write_page
    from makemore.report.surprisal import duel_page, surprisal_page
    from makemore.runs.run import load

    found = surprisal(load(run, device), file)
    both = None if against is None else duel(found, surprisal(load(against, device), file))
    if html is not None:
        write_page(html, surprisal_page(found) if both is None else duel_page(both))
    if json:
        print_json((both or found).as_dict())
    elif both is None:
        print_surprisal(found)
    else:
        print_duel(both)
