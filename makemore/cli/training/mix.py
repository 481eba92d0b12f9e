"""``makemore mix``."""

from __future__ import annotations

from pathlib import Path

import typer

from makemore.cli.options import DEVICE, JSON, print_json


def command(
    runs: list[str] = typer.Argument(..., help="Two run directories or more, on one tokenizer and text."),
    out: Path = typer.Option(..., "--out", "-o", help="Run directory of the mixture."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace a run that is there."),
    device: str = DEVICE,
    json: bool = JSON,
) -> None:
    """Join runs into a mixture, its weights fitted on val (so read its score on test)."""
    from makemore.cli.progress import score_line
    from makemore.training.mix import mix

    result = mix(runs, out, device, overwrite)
    if json:
        print_json(result.as_dict())
        return
    for name, weight in zip(result.members, result.weights, strict=True):
        print(f"{weight:.3f}  {name}")
    print(score_line(result.val) + "  (weights were fitted here)")
    if result.test is not None:
        print(score_line(result.test))
    print(f"sample it: makemore sample {out}")
