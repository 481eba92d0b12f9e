"""``makemore eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from makemore.cli.options import DEVICE, JSON, RUN
from makemore.cli.terminal import echo, print_json

if TYPE_CHECKING:
    from makemore.evaluation.evaluate import AdaptiveScore


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
    adaptive: bool = typer.Option(
        False, "--adaptive", help="Also report the adaptive score: the model learns from what it has scored."
    ),
    adaptive_lr: float | None = typer.Option(
        None, "--adaptive-lr", help="Learning rate of models trained by gradients (default: 0.0003)."
    ),
    device: str = DEVICE,
    json: bool = JSON,
) -> None:
    """Score a run on every token of a split, exactly once."""
    from makemore.cli.progress import memorisation_line, score_line
    from makemore.errors import UserError
    from makemore.evaluation.adaptive import DynamicSettings
    from makemore.evaluation.evaluate import evaluate, evaluate_adaptive
    from makemore.evaluation.memorization import DEFAULT_SAMPLES, sample_memorization
    from makemore.runs.run import is_fitted_on, load
    from makemore.sampling.text import SampleRequest

    if adaptive_lr is not None and not adaptive:
        raise UserError("--adaptive-lr requires --adaptive")
    settings = None if adaptive_lr is None else DynamicSettings(lr=adaptive_lr)
    loaded = load(run, device)
    score = evaluate(loaded, file, split, stride)
    memorisation = None
    if report and file is None:
        memorisation = sample_memorization(loaded, [SampleRequest(n=DEFAULT_SAMPLES[loaded.mode])])
    adaptive_score = None
    if adaptive:
        adaptive_score = evaluate_adaptive(loaded, score, file, split, stride, settings)
    if json:
        payload = {"run": run, **score.as_dict(), "memorisation": memorisation}
        payload["adaptive"] = None if adaptive_score is None else adaptive_score.as_dict()
        print_json({name: value for name, value in payload.items() if value is not None})
        return
    lines = [score_line(score)]
    if file is None and is_fitted_on(loaded.config, score.split):
        lines.append("the mixture's weights were fitted on val; use --split test")
    if memorisation is not None:
        lines.append(memorisation_line(memorisation))
    if adaptive_score is not None:
        lines.append(adaptive_line(adaptive_score))
    echo("\n".join(lines))


def adaptive_line(adaptive: AdaptiveScore) -> str:
    """Format an adaptive score and its difference from the frozen score."""
    from makemore.cli.progress import in_brackets, score_line

    interval = in_brackets(adaptive.difference_ci95, "+")
    return (
        f"adaptive (the model learns from what it has scored; compare with other adaptive scores only):\n"
        f"{score_line(adaptive.score)}\n"
        f"{adaptive.difference:+.4f} bits/byte {interval} relative to the frozen score"
    )
