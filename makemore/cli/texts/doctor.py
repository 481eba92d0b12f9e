"""``makemore doctor``."""

from __future__ import annotations

from typing import Any

import typer

from makemore.cli.options import INPUT, JSON, print_json, printable


def command(
    input: list[str] = INPUT,
    mode: str | None = typer.Option(None, "--mode", help="auto, lines or text."),
    encoding: str | None = typer.Option(None, "--encoding", help="The text's encoding (default utf-8)."),
    compile: bool = typer.Option(True, "--compile/--no-compile", help="Try whether torch.compile works."),
    json: bool = JSON,
) -> None:
    """Look at a text and this machine, and say what training would make of them."""
    from makemore.corpus.doctor import diagnose

    corpus = {key: value for key, value in (("mode", mode), ("encoding", encoding)) if value is not None}
    found = diagnose(input, corpus, compile)
    if json:
        print_json(found.as_dict())
        return
    for name, section in found.sections.items():
        print(f"{name}:")
        for label, value in section.items():
            print(f"  {label}: {printable(_shown(value))}")
    for line in found.advice:
        print(f"! {printable(line)}")


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
