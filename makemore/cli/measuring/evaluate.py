"""``makemore eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from makemore.cli.options import DEVICE, JSON, RUN
from makemore.cli.terminal import echo, print_json

if TYPE_CHECKING:
    from makemore.evaluation.evaluate import DynamicScore


def command(
    run: Path = RUN,
    file: Path | None = typer.Argument(None, help="Another text to score, in full unless --split is set."),
    split: str | None = typer.Option(None, "--split", help="Split: val (default), test, train or val+test."),
    stride: int | None = typer.Option(
        None, "--stride", help="Step between windows in tokens (default: half the context)."
    ),
    report: bool = typer.Option(
        True, "--report/--no-report", help="Without FILE, also print memorisation statistics."
    ),
    dynamic: bool = typer.Option(
        False, "--dynamic", help="Also report dynamic evaluation: the model learns while it is scored."
    ),
    dynamic_lr: float | None = typer.Option(None, "--dynamic-lr", help="Learning rate (default: 0.0003)."),
    device: str = DEVICE,
    json: bool = JSON,
) -> None:
    """Score a run on every token of a split, exactly once."""
    from makemore.cli.progress import memorisation_line, score_line
    from makemore.errors import UserError
    from makemore.evaluation.dynamic import DynamicSettings
    from makemore.evaluation.evaluate import evaluate, evaluate_dynamic
    from makemore.evaluation.memorization import DEFAULT_SAMPLES, sample_memorization
    from makemore.runs.run import is_fitted_on, load
    from makemore.sampling.text import SampleRequest

    if dynamic_lr is not None and not dynamic:
        raise UserError("--dynamic-lr requires --dynamic")
    settings = DynamicSettings() if dynamic_lr is None else DynamicSettings(lr=dynamic_lr)
    loaded = load(run, device)
    score = evaluate(loaded, file, split, stride)
    memorisation = None
    if report and file is None:
        memorisation = sample_memorization(loaded, [SampleRequest(n=DEFAULT_SAMPLES[loaded.mode])])
    dynamic_score = (
        evaluate_dynamic(loaded, score, file=file, split=split, stride=stride, settings=settings)
        if dynamic
        else None
    )
    if json:
        payload = {"run": run, **score.as_dict(), "memorisation": memorisation}
        payload["dynamic"] = None if dynamic_score is None else dynamic_score.as_dict()
        print_json({name: value for name, value in payload.items() if value is not None})
        return
    lines = [score_line(score)]
    if file is None and is_fitted_on(loaded.config, score.split):
        lines.append("the mixture's weights were fitted on val; use --split test")
    if memorisation is not None:
        lines.append(memorisation_line(memorisation))
    if dynamic_score is not None:
        lines.append(dynamic_line(dynamic_score))
    echo("\n".join(lines))


def dynamic_line(dynamic: DynamicScore) -> str:
    """Format a dynamic score and its difference from the plain score."""
    from makemore.cli.progress import in_brackets, score_line

    interval = in_brackets(dynamic.difference_ci95, "+")
    return (
        f"dynamic evaluation (the model learns while it is scored; not comparable with plain scores):\n"
        f"{score_line(dynamic.score)}\n"
        f"{dynamic.difference:+.4f} bits/byte {interval} relative to the plain score"
    )
