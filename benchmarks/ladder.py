"""Train the ladder on names and shakespeare within fixed budgets and print the figures as Markdown.

    python benchmarks/ladder.py names --seeds 0 --out checkpoints/ladder
    python benchmarks/ladder.py shakespeare --only count,lstm

Each line is a whole `makemore train` process, one at a time; runs that are there already are only
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
from makemore.training.mix import mix


@dataclass(frozen=True)
class Entry:
    """One line of the table: what is trained, for how long, and which runs are mixed."""

    label: str
    options: tuple[str, ...] = ()
    members: tuple[str, ...] = ()


def rung(label: str, model: str, seconds: int, *settings: str) -> Entry:
    budget = ("--max-time", f"{seconds}s")
    return Entry(label, ("--model", model, *budget, *(x for s in settings for x in ("--set", s))))


NAMES = (
    rung("count", "count", 60),
    rung("count-5", "count", 60, "model.order=5"),
    rung("count-2", "count", 60, "model.order=2", "model.smoothing=additive"),
    rung("bigram", "bigram", 20),
    rung("mlp-3", "mlp", 60, "model.block_size=3"),
    rung("mlp-8", "mlp", 60),
    rung("bow", "bow", 60),
    rung("batchnorm-mlp-3", "batchnorm-mlp", 60),
    rung("wavenet", "wavenet", 120),
    rung("rnn", "rnn", 180),
    rung("gru", "gru", 180),
    rung("lstm", "lstm", 180),
    rung("transformer", "transformer", 120),
    Entry("mixture", members=("transformer", "lstm", "count")),
)
SHAKESPEARE = (
    rung("count", "count", 60),
    rung("count-7", "count", 60, "model.order=7"),
    rung("transformer-90", "transformer", 90),
    rung("transformer-180", "transformer", 180),
    rung("lstm-180", "lstm", 180),
    Entry("mixture-90", members=("transformer-90", "count")),
    Entry("mixture-180", members=("transformer-180", "lstm-180", "count")),
)
TABLES = {"names": (NAMES, ("val", "test")), "shakespeare": (SHAKESPEARE, ("val", "test", "val+test"))}


def make(entry: Entry, data: str, folder: Path, seed: int) -> Path:
    """The run of an entry, trained or mixed unless it is there."""
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
    """A line of the table: nats per character of each split, and what the run cost."""
    loaded = load(run)
    figures = [f"{evaluate(loaded, split=split).nats_per_char:.4f}" for split in splits]
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    seconds = f"{float(result.get('seconds', 0)):.0f}"
    cells = [entry.label, str(seed), f"{loaded.model.n_parameters():,}", seconds, *figures]
    return f"| {' | '.join(cells)} |"


def main(
    data: str,
    seeds: str = typer.Option("0", help="Seeds, such as 0,1,2."),
    only: str = typer.Option("", help="Labels to run (default: all)."),
    out: Path = typer.Option(Path("checkpoints/ladder"), help="Folder of the runs."),
) -> None:
    """Print one table."""
    entries, splits = TABLES[data]
    wanted = [e for e in entries if not only or e.label in only.split(",")]
    print(f"| rung | seed | parameters | seconds | {' | '.join(splits)} |")
    print("|---" * (4 + len(splits)) + "|", flush=True)
    for seed in map(int, seeds.split(",")):
        for entry in wanted:
            print(row(entry, make(entry, data, out, seed), splits, seed), flush=True)


if __name__ == "__main__":
    typer.run(main)
