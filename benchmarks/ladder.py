"""Train the ladder on names or shakespeare with fixed time budgets and print a Markdown table of losses.

    python benchmarks/ladder.py names --seeds 0 --out checkpoints/ladder
    python benchmarks/ladder.py shakespeare --only count,lstm

Each row is a complete `makemore train` process, one after another; finished runs are reused and only
scored. Needs the data sets (`makemore data names`, `makemore data shakespeare`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import typer

from makemore.evaluation.evaluate import evaluate
from makemore.runs.run import load
from makemore.training.mixing.mix import mix


@dataclass(frozen=True)
class Entry:
    """One row of the table: a model trained with ``options``, or a mixture of the runs in ``members``."""

    label: str
    options: tuple[str, ...] = ()
    members: tuple[str, ...] = ()


def model_entry(label: str, model: str, seconds: int, *settings: str) -> Entry:
    budget = ("--max-time", f"{seconds}s")
    return Entry(label, ("--model", model, *budget, *(x for s in settings for x in ("--set", s))))


NAMES = (
    model_entry("count", "count", 60),
    model_entry("count-5", "count", 60, "model.order=5"),
    model_entry("count-2", "count", 60, "model.order=2", "model.smoothing=additive"),
    model_entry("bigram", "bigram", 20),
    model_entry("mlp-3", "mlp", 60, "model.block_size=3"),
    model_entry("mlp-8", "mlp", 60),
    model_entry("bow", "bow", 60),
    model_entry("batchnorm-mlp-3", "batchnorm-mlp", 60),
    model_entry("wavenet", "wavenet", 120),
    model_entry("rnn", "rnn", 180),
    model_entry("gru", "gru", 180),
    model_entry("lstm", "lstm", 180),
    model_entry("transformer", "transformer", 120),
    Entry("mixture", members=("transformer", "lstm", "count")),
)
SHAKESPEARE = (
    model_entry("count", "count", 60),
    model_entry("count-7", "count", 60, "model.order=7"),
    model_entry("transformer-90", "transformer", 90),
    model_entry("transformer-180", "transformer", 180),
    model_entry("lstm-180", "lstm", 180),
    Entry("mixture-90", members=("transformer-90", "count")),
    Entry("mixture-180", members=("transformer-180", "lstm-180", "count")),
)
TABLES = {"names": (NAMES, ("val", "test")), "shakespeare": (SHAKESPEARE, ("val", "test", "val+test"))}


def make(entry: Entry, data: str, folder: Path, seed: int) -> Path:
    """Train or mix an entry's run, unless it is already finished."""
    run = folder / f"{data}-{entry.label}-{seed}"
    if (run / "result.json").exists():
        return run
    if entry.members:
        mix([folder / f"{data}-{member}-{seed}" for member in entry.members], run, overwrite=run.exists())
        return run
    command = [sys.executable, "-m", "makemore", "train", data, *entry.options]
    command += ["--seed", str(seed), "--out", str(run), "--json"] + (["--overwrite"] if run.exists() else [])
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return run


def row(entry: Entry, run: Path, splits: tuple[str, ...], seed: int) -> str:
    """Table row: size, training seconds, and nats per character on each split."""
    loaded = load(run)
    losses = [f"{evaluate(loaded, split=split).nats_per_char:.4f}" for split in splits]
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    seconds = f"{float(result.get('seconds', 0)):.0f}"
    cells = [entry.label, str(seed), f"{loaded.model.n_parameters():,}", seconds, *losses]
    return f"| {' | '.join(cells)} |"


def main(
    data: str,
    seeds: str = typer.Option("0", help="Seeds, separated by commas."),
    only: str = typer.Option("", help="Labels of the rows, separated by commas (default: all)."),
    out: Path = typer.Option(Path("checkpoints/ladder"), help="Directory for the runs."),
) -> None:
    """Print the table."""
    entries, splits = TABLES[data]
    selected = [e for e in entries if not only or e.label in only.split(",")]
    print(f"| model | seed | parameters | seconds | {' | '.join(splits)} |")
    print("|---" * (4 + len(splits)) + "|", flush=True)
    for seed in map(int, seeds.split(",")):
        for entry in selected:
            print(row(entry, make(entry, data, out, seed), splits, seed), flush=True)


if __name__ == "__main__":
    typer.run(main)
