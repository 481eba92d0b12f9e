"""Compare tokenizers with equal training time: bits per byte on shakespeare, as a Markdown table.

    python benchmarks/tokenizers.py --seconds 60 --out checkpoints/tokenizers

Each cell is a complete `makemore train` process, one after another; finished runs are reused and only
scored. The script checks that all tokenizers are scored on the same bytes and characters.
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
MODELS = ("transformer", "lstm", "count")


def train_and_score(data: str, name: str, tokenizer: str, seconds: int, folder: Path) -> Score:
    """Train a run, unless it is finished, and score it on val + test."""
    run = folder / f"{name}-{tokenizer.replace(':', '-')}"
    if not (run / "result.json").exists():
        command = [sys.executable, "-m", "makemore", "train", data, "--model", name, "--tokenizer", tokenizer]
        command += ["--max-time", f"{seconds}s", "--out", str(run), "--json"]
        subprocess.run(
            command + (["--overwrite"] if run.exists() else []), check=True, stdout=subprocess.DEVNULL
        )
    return evaluate(load(run), split="val+test")


def main(
    data: str = typer.Argument("shakespeare", help="A data set or a text file."),
    seconds: int = typer.Option(60, help="Training time per run, in seconds."),
    out: Path = typer.Option(Path("checkpoints/tokenizers"), help="Directory for the runs."),
) -> None:
    """Print the table."""
    scores = {(t, r): train_and_score(data, r, t, seconds, out) for t in TOKENIZERS for r in MODELS}
    sizes = {(score.bytes, score.chars) for score in scores.values()}
    if len(sizes) != 1:
        raise SystemExit(f"tokenizers were scored on different texts: {sizes}")
    print(f"{sizes.pop()} bytes and characters scored per tokenizer")
    print("| tokenizer | tokens | " + " | ".join(MODELS) + " |\n|---|---" + "|---" * len(MODELS) + "|")
    for tokenizer in TOKENIZERS:
        row = [scores[tokenizer, name] for name in MODELS]
        print(
            f"| {tokenizer} | {row[0].tokens:,} | " + " | ".join(f"{s.bits_per_byte:.4f}" for s in row) + " |"
        )


if __name__ == "__main__":
    typer.run(main)
