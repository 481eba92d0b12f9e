"""Which tokenizer is best for which rung in equal time: bits per byte on shakespeare, as Markdown.

    python benchmarks/tokenizers.py --seconds 60 --out checkpoints/tokenizers

Each cell is a whole `makemore train` process, one at a time; runs that are there already are only
scored. The bytes and characters scored must be equal for all tokenizers: the script checks it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import typer

from makemore.evaluation.evaluate import evaluate
from makemore.runs.run import load
from makemore.types import Score

TOKENIZERS = ("char", "byte", "bpe:512", "bpe:2048", "spm:512")
RUNGS = ("transformer", "lstm", "count")


def trained(data: str, rung: str, tokenizer: str, seconds: int, folder: Path) -> Score:
    """The score on val + test of a run, trained unless it is there."""
    run = folder / f"{rung}-{tokenizer.replace(':', '-')}"
    if not (run / "result.json").exists():
        command = [sys.executable, "-m", "makemore", "train", data, "--model", rung, "--tokenizer", tokenizer]
        command += ["--max-time", f"{seconds}s", "--out", str(run), "--json"]
        subprocess.run(
            command + (["--overwrite"] if run.exists() else []), check=True, stdout=subprocess.DEVNULL
        )
    return evaluate(load(run), split="val+test")


def main(
    data: str = typer.Argument("shakespeare", help="A text."),
    seconds: int = typer.Option(60, help="Training time of each run."),
    out: Path = typer.Option(Path("checkpoints/tokenizers"), help="Where the runs go."),
) -> None:
    """Train, score and print."""
    scores = {(t, r): trained(data, r, t, seconds, out) for t in TOKENIZERS for r in RUNGS}
    sizes = {(score.bytes, score.chars) for score in scores.values()}
    if len(sizes) != 1:
        raise SystemExit(f"tokenizers were scored on different texts: {sizes}")
    print(f"{sizes.pop()} bytes and characters scored by each")
    print("| tokenizer | tokens | " + " | ".join(RUNGS) + " |\n|---|---" + "|---" * len(RUNGS) + "|")
    for tokenizer in TOKENIZERS:
        row = [scores[tokenizer, rung] for rung in RUNGS]
        print(
            f"| {tokenizer} | {row[0].tokens:,} | " + " | ".join(f"{s.bits_per_byte:.4f}" for s in row) + " |"
        )


if __name__ == "__main__":
    typer.run(main)
