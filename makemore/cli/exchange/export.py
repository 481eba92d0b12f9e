"""``makemore export``."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from makemore.cli.options import JSON, print_json


def command(
    run: Path = typer.Argument(..., help="A run directory."),
    format: str = typer.Option(..., "--format", "-f", help="hf (Hugging Face), onnx or arpa (KenLM)."),
    out: Path | None = typer.Option(
        None, "--out", "-o", help="Where to (default: beside the run, named after it)."
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an export that is there."),
    json: bool = JSON,
) -> None:
    """Write a run for another program: transformers, onnxruntime or KenLM."""
    from makemore.interop.export import export
    from makemore.runs.run import load

    done = export(load(run, "cpu"), format, out, overwrite)
    if json:
        print_json(done.as_dict())
        return
    print(f"{done.path}  ({done.bytes:,} bytes)")
    if done.note:
        print(done.note, file=sys.stderr)
