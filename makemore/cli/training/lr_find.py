"""``makemore lr-find``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from makemore.cli.options import JSON, TOKENIZER, given
from makemore.cli.terminal import echo, print_json

if TYPE_CHECKING:
    from makemore.training.lr_find import Sweep

ROWS, WIDTH = 20, 48


def command(
    input: str | None = typer.Argument(None, help="Text file or data set name (default: first-names)."),
    model: str = typer.Option("transformer", "--model", "-m", help="Model; see makemore models."),
    low: float | None = typer.Option(
        None, "--from", help="Lowest rate (default: 1/1000 of the recipe's learning rate)."
    ),
    high: float | None = typer.Option(
        None, "--to", help="Highest rate (default: 100 times the recipe's learning rate)."
    ),
    steps: int = typer.Option(200, "--steps", help="Optimizer steps of the sweep."),
    max_time: str | None = typer.Option(None, "--max-time", help="Sweep time, e.g. 30s; replaces --steps."),
    tokenizer: str = TOKENIZER,
    device: str | None = typer.Option(None, "--device", help="auto, cpu, cuda, cuda:1 or mps."),
    seed: int | None = typer.Option(None, "--seed", help="Random seed of weights, batches and dropout."),
    config: Path | None = typer.Option(None, "--config", help="TOML file of settings."),
    settings: list[str] = typer.Option([], "--set", help="A setting, such as model.n_layer=6; repeatable."),
    out: Path | None = typer.Option(None, "--out", "-o", help="Plot: a PNG, PDF or SVG file."),
    json: bool = JSON,
) -> None:
    """Suggest a learning rate from a short range test."""
    from makemore.settings.train import parse_duration

    limit = parse_duration(max_time)
    from makemore.models import MODELS

    MODELS.path(model)
    from makemore.cli.progress import ProgressObserver
    from makemore.training.lr_find import SweepRequest, find_lr
    from makemore.training.request import TrainRequest

    training = TrainRequest(
        input=input or (),
        model=model,
        tokenizer=tokenizer,
        train=given(device=device, seed=seed),
        settings=tuple(settings),
        config=config,
    )
    observer = ProgressObserver(model)
    try:
        sweep = find_lr(
            SweepRequest(training=training, low=low, high=high, steps=steps, max_time=limit, picture=out),
            observer,
        )
    finally:
        observer.close()
    if sweep.caveat:
        observer.note(f"unreliable suggestion: {sweep.caveat}")
    if json:
        print_json(sweep.as_dict())
        return
    echo(chart(sweep))
    flags = " ".join(f"--set {name}={rate}" for name, rate in sweep.settings().items())
    echo(f"suggested: {flags}")
    observer.note("a tenth of the rate with the lowest smoothed loss")
    observer.note(f"picture: {sweep.picture}")


def chart(sweep: Sweep) -> str:
    """Format the smoothed loss as a bar chart by learning rate, with the suggested rate marked."""
    points = sweep.points
    step = max(1, len(points) // ROWS)
    shown = points[::step]
    suggested = min(shown, key=lambda point: abs(point.lr / sweep.lr - 1))
    lowest, highest = (pick(point.smooth for point in points) for pick in (min, max))
    lines = ["      rate    loss"]
    for point in shown:
        bar = "█" * round(WIDTH * (point.smooth - lowest) / max(highest - lowest, 1e-9))
        mark = " ← suggested" if point is suggested else ""
        lines.append(f"{point.lr:10.2e}  {point.smooth:6.3f}  {bar}{mark}")
    return "\n".join(lines)
