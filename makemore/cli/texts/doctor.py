"""``makemore doctor``."""

from __future__ import annotations

from typing import Any

import typer

from makemore.cli.options import ENCODING, INPUT, JSON, MODE, SKIP_DAMAGED, given, quote_command
from makemore.cli.terminal import echo, print_json


def command(
    input: list[str] = INPUT,
    mode: str | None = MODE,
    encoding: str | None = ENCODING,
    skip_damaged: bool | None = SKIP_DAMAGED,
    compile: bool = typer.Option(True, "--compile/--no-compile", help="Test whether torch.compile works."),
    json: bool = JSON,
) -> None:
    """Check a text and this computer before training."""
    from makemore.inspection.doctor import diagnose

    corpus = given(mode=mode, encoding=encoding, skip_damaged=skip_damaged)
    diagnosis = diagnose(input, corpus, compile)
    if json:
        print_json(diagnosis.as_dict())
        return
    for name, section in diagnosis.sections.items():
        echo(f"{name}:")
        for label, value in section.items():
            echo(f"  {label}: {_format(value)}")
    for line in diagnosis.advice:
        echo(f"! {line}")
    flags = ["--skip-damaged"] if skip_damaged else []
    echo(f"train it: {_training_command([*input, *flags], diagnosis.sections['recommended'])}")


def _training_command(arguments: list[str], recommended: dict[str, Any]) -> str:
    flags = ["--mode", recommended["mode"], "--model", recommended["model"]]
    if recommended["encoding"] != "utf-8":
        flags += ["--encoding", recommended["encoding"]]
    if recommended["model"] != "count":
        flags += ["--max-time", recommended["time"]]
    return quote_command("makemore", "train", *arguments, *flags)


def _format(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
