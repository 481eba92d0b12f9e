"""``makemore export``."""

from __future__ import annotations

from pathlib import Path

import typer

from makemore.cli.options import JSON, RUN
from makemore.cli.terminal import echo, print_json


def command(
    run: Path = RUN,
    format: str = typer.Option(..., "--format", "-f", help="hf, onnx, html (a web page) or arpa."),
    out: Path | None = typer.Option(
        None, "--out", "-o", help="Output path (default: beside the run, named after it)."
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Overwrite an existing export."),
    json: bool = JSON,
) -> None:
    """Export a run for transformers, onnxruntime or KenLM, or as a web page that runs the model."""
    from makemore.interop.export import export
    from makemore.runs.run import load

    exported = export(load(run, "cpu"), format, out, overwrite)
    if json:
        print_json(exported)
        return
    echo(f"{exported.path}  ({exported.bytes:,} bytes)")
    echo(f"{exported.card}  (model card)")
    if exported.note:
        echo(exported.note, err=True)
