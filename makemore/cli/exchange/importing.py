"""``makemore import``."""

from __future__ import annotations

from pathlib import Path

import typer

from makemore.cli.options import JSON, quote_command
from makemore.cli.terminal import echo, print_json


def command(
    checkpoint: Path = typer.Argument(..., help="nanoGPT ckpt.pt or makemore.py model.pt; no code is run."),
    input: str = typer.Argument(..., help="The checkpoint's training text: a file or a data set name."),
    out: Path | None = typer.Option(None, "--out", "-o", help="Run directory to create."),
    n_head: int | None = typer.Option(
        None,
        "--n-head",
        min=1,
        help="Attention heads of a makemore.py transformer, not stored in its file (default: 4).",
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Overwrite an existing run directory."),
    json: bool = JSON,
) -> None:
    """Import a nanoGPT or makemore.py checkpoint as a run."""
    from makemore.interop.importing import import_checkpoint

    run = import_checkpoint(checkpoint, input, out=out, n_head=n_head, overwrite=overwrite)
    model, parameters = run.config.model.name, run.model.n_parameters()
    if json:
        print_json({"run": str(run.folder.path), "model": model, "parameters": parameters})
        return
    echo(f"{run.folder.path}: {model}, {parameters:,} parameters")
    echo(f"score it: {quote_command('makemore', 'eval', str(run.folder.path))}")
