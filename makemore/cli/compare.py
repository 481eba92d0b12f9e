"""``makemore compare``."""

from __future__ import annotations

import sys

import typer

from makemore.cli.options import DEVICE, JSON, TOKENIZER, print_json, seconds


def command(
    inputs: list[str] = typer.Argument(..., help="One text to train every rung on, or run directories."),
    models: str = typer.Option("all", "--models", help="Rungs, such as count,mlp; or all."),
    tokenizer: str = TOKENIZER,
    max_time: str = typer.Option("60s", "--max-time", help="Training time of each rung."),
    split: str = typer.Option("val", "--split", help="val, test or val+test."),
    seed: int = typer.Option(0, "--seed", help="Seed of every rung."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Train anew what has been trained."),
    device: str = DEVICE,
    json: bool = JSON,
) -> None:
    """Train every rung on one split within the same time, or score runs; best first."""
    limit = seconds(max_time)
    from makemore.cli.progress import ProgressObserver
    from makemore.cli.signals import stop_flag
    from makemore.cli.tables import comparison_table
    from makemore.workflows.comparison import CompareRequest, compare
    from makemore.workflows.training import Interrupted

    request = CompareRequest(tuple(inputs), models, tokenizer, limit or 60.0, split, seed, device, overwrite)
    observers: list[ProgressObserver] = []

    def observe(label: str) -> ProgressObserver:
        for observer in observers:
            observer.close()
        observers.append(ProgressObserver(label))
        observers[-1].note(f"── {label}")
        return observers[-1]

    with stop_flag() as flag:
        try:
            rows = compare(request, observe, flag)
        except (Interrupted, KeyboardInterrupt) as stopped:
            print(f"makemore: {str(stopped) or 'stopped at once'}", file=sys.stderr)
            raise typer.Exit(flag.status) from None
        finally:
            for observer in observers:
                observer.close()
    if json:
        print_json({"split": split, "rows": [row.as_dict() for row in rows]})
    else:
        print(comparison_table(rows))
