"""``makemore import``."""

from __future__ import annotations

from pathlib import Path

import typer

from makemore.cli.options import JSON, print_json


def command(
    checkpoint: Path = typer.Argument(..., help="nanoGPT's ckpt.pt or makemore.py's model.pt."),
    input: str = typer.Argument(..., help="The text it was trained on: a file or a data set's name."),
    out: Path | None = typer.Option(None, "--out", "-o", help="Run directory."),
    n_head: int | None = typer.Option(
        None,
        "--n-head",
        min=1,
        help="Heads of a makemore.py transformer, whose file doesn't say (default 4).",
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace a run that is there."),
    json: bool = JSON,
) -> None:
    """Make a run of another program's checkpoint; nothing in the file is executed."""
    from makemore.interop.importing import import_checkpoint

    run = import_checkpoint(checkpoint, input, out, n_head, overwrite)
    model, parameters = run.config["model"]["name"], run.model.n_parameters()
    if json:
        print_json({"run": str(run.folder.path), "model": model, "parameters": parameters})
        return
    print(f"{run.folder.path}: {model}, {parameters:,} parameters")
    print(f"score it: makemore eval {run.folder.path}")
