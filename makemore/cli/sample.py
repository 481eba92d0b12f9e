"""``makemore sample``."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from makemore.cli.options import DEVICE, JSON, print_json


def command(
    run: Path = typer.Argument(..., help="A run directory."),
    n: int | None = typer.Option(None, "-n", help="Samples (default: 10 lines, or one text)."),
    prompt: str | None = typer.Option(None, "--prompt", "-p", help="Text to go on from."),
    prompt_file: Path | None = typer.Option(None, "--prompt-file", help="A file to go on from."),
    max_new_tokens: int | None = typer.Option(None, "--max-new-tokens", help="Longest sample, in tokens."),
    temperature: float = typer.Option(1.0, "--temperature", help="Below 1 safer, above 1 bolder."),
    top_k: int | None = typer.Option(None, "--top-k", help="Choose among the K likeliest tokens."),
    top_p: float | None = typer.Option(None, "--top-p", help="Choose among the likeliest with this mass."),
    min_p: float | None = typer.Option(
        None, "--min-p", help="Drop tokens below this share of the likeliest."
    ),
    greedy: bool = typer.Option(False, "--greedy", help="Always the likeliest token."),
    stop: str | None = typer.Option(None, "--stop", help="End a sample before this text."),
    seed: int | None = typer.Option(None, "--seed", help="The same seed gives the same samples."),
    unknown: str = typer.Option("error", "--unknown", help="Prompt characters never seen: error or skip."),
    device: str = DEVICE,
    json: bool = JSON,
) -> None:
    """Sample from a run; samples alone on stdout."""
    from makemore.corpus.source import read_text
    from makemore.errors import UserError
    from makemore.sampling import SampleParams

    if unknown not in ("error", "skip"):
        raise UserError(f"--unknown {unknown!r}: must be error or skip")
    if prompt is not None and prompt_file is not None:
        raise UserError("--prompt and --prompt-file exclude each other")
    if prompt_file is not None:
        prompt = read_text(prompt_file)
    params = SampleParams(temperature, top_k, top_p, min_p, greedy)
    from makemore.workflows.generation import SampleRequest, random_seed, sample, stream_text
    from makemore.workflows.runs import load

    loaded = load(run, device)
    default = 10 if loaded.mode == "lines" else 1
    request = SampleRequest(
        default if n is None else n,
        prompt or "",
        max_new_tokens,
        params,
        stop,
        random_seed() if seed is None else seed,
        unknown == "skip",
    )
    if json:
        print_json({"run": str(run), "seed": request.seed, "samples": list(sample(loaded, request))})
        return
    if loaded.mode == "text" and request.n == 1 and sys.stdout.isatty():
        for piece in stream_text(loaded, request):
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
        return
    for i, text in enumerate(sample(loaded, request)):
        if i and loaded.mode == "text":
            print("-" * 40)
        print(text)
