"""``makemore mix``."""

from __future__ import annotations

from pathlib import Path

import typer

from makemore.cli.options import DEVICE, JSON, quote_command
from makemore.cli.terminal import echo, print_json


def command(
    runs: list[str] = typer.Argument(..., help="Two or more run directories; tokenizer and text must match."),
    out: Path = typer.Option(..., "--out", "-o", help="Run directory of the mixture."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Overwrite an existing run directory."),
    gate: bool = typer.Option(
        True, "--gate/--constant", help="Weights that depend on what the runs predict, or constant ones."
    ),
    device: str = DEVICE,
    json: bool = JSON,
) -> None:
    """Combine runs into a mixture with weights fitted on val.

    With constant weights the val score is biased: compare test scores.
    """
    from makemore.cli.progress import score_line
    from makemore.training.mixing.mix import mix

    result = mix(runs, out, device, overwrite, gate)
    if json:
        print_json(result.as_dict())
        return
    for name, weight in zip(result.members, result.weights, strict=True):
        echo(f"{weight:.3f}  {name}")
    echo(score_line(result.val) + ("" if gate else "  (the weights were fitted on this split)"))
    if result.test is not None:
        echo(score_line(result.test))
    echo(f"sample it: {quote_command('makemore', 'sample', str(out))}")
