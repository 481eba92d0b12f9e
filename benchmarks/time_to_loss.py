"""Compare loss over wall time of named recipes and of nanoGPT, on the same machine and text.

    python benchmarks/time_to_loss.py shakespeare --recipes transformer-90,lstm-90 --seeds 0,1,2
    python benchmarks/time_to_loss.py shakespeare --nanogpt ../nanoGPT --picture curves.png

Each row is a complete process, one after another, timed from its start; finished runs are reused and only
scored. Curves show the validation loss estimated during training. The score is exact: every character of val
and test once.

nanoGPT is a local clone (git clone https://github.com/karpathy/nanoGPT), run with its own command line and
its CPU settings, or its GPU settings with --gpu. Like the recipes here, it trains on the first nine tenths of
the text. Its checkpoint is imported without unpickling code and scored with the same protocol; its time
covers the complete process.
"""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import typer

from makemore.corpus.datasets import resolve_input
from makemore.corpus.text import read_source
from makemore.evaluation.evaluate import evaluate
from makemore.evaluation.scoring import estimate_loss
from makemore.interop.importing import import_checkpoint
from makemore.runs.run import load
from makemore.settings import TrainConfig
from makemore.types import Score

RECIPES = {
    "transformer-13": ("--model", "transformer", "--max-time", "13s"),
    "transformer-90": ("--model", "transformer", "--max-time", "90s"),
    "transformer-300": ("--model", "transformer", "--max-time", "300s"),
    "lstm-90": ("--model", "lstm", "--max-time", "90s"),
    "lstm-300": ("--model", "lstm", "--max-time", "300s"),
    "count": ("--model", "count"),
}
CPU = (
    "--device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size=64 --batch_size=12 "
    "--n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
)
"""nanoGPT's CPU settings, from its README. Its GPU settings are in its config file."""


@dataclass
class Outcome:
    """``curve`` holds seconds since the process started and validation loss in nats per character."""

    label: str
    seconds: float
    curve: list[tuple[float, float]] = field(default_factory=list)
    score: Score | None = None

    def time_to(self, loss: float) -> float | None:
        """Seconds until the validation loss reached ``loss``, or None if it never did."""
        return next((at for at, val in self.curve if val <= loss), None)


def stream_lines(command: list[str], log: Path, cwd: Path | None = None) -> Iterator[tuple[float, str]]:
    """Yield a process's output lines with their times. Raises CalledProcessError if it fails."""
    start = time.perf_counter()
    with (
        subprocess.Popen(
            command,
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        ) as process,
        log.open("w", encoding="utf-8") as log_file,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            log_file.write(line)
            yield time.perf_counter() - start, line
    if process.returncode:
        print(f"see {log}", file=sys.stderr)
        raise subprocess.CalledProcessError(process.returncode, command)
    yield time.perf_counter() - start, ""


# --- makemore ------------------------------------------------------------------------------------


def follow(command: list[str], metrics: Path) -> Iterator[tuple[float, dict[str, Any]]]:
    """Yield the records that a run writes with their times, and at the end an empty one."""
    start, n_read = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while True:
            running = process.poll() is None
            lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True) if metrics.exists() else []
            complete = [line for line in lines if line.endswith("\n")]
            for line in complete[n_read:]:
                yield time.perf_counter() - start, json.loads(line)
            n_read = len(complete)
            if not running:
                break
            time.sleep(0.05)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    yield time.perf_counter() - start, {}


def train(recipe: str, data: str, seed: int, folder: Path, settings: list[str]) -> Outcome:
    """Train a recipe, unless its run is finished, and score it on val and test."""
    run = folder / f"{recipe}-{seed}"
    results = run / "time_to_loss.json"
    outcome = Outcome(f"{recipe}, seed {seed}", 0.0)
    if results.exists():
        saved = json.loads(results.read_text(encoding="utf-8"))
        outcome.seconds, outcome.curve = saved["seconds"], [tuple(pair) for pair in saved["curve"]]
    else:
        command = [sys.executable, "-m", "makemore", "train", data, *RECIPES[recipe], "--seed", str(seed)]
        command += ["--out", str(run), *(["--overwrite"] if run.exists() else [])]
        command += [part for setting in settings for part in ("--set", setting)]
        for at, record in follow(command, run / "metrics.jsonl"):
            outcome.seconds = at
            if "val" in record:
                outcome.curve.append((at, record["val"]))
        results.write_text(json.dumps({"seconds": outcome.seconds, "curve": outcome.curve}), encoding="utf-8")
    outcome.score = evaluate(load(run), split="val+test")
    return outcome


# --- nanoGPT -------------------------------------------------------------------------------------


def write_data(text: str, folder: Path) -> None:
    """Write the text in the format of nanoGPT's prepare.py."""
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = "".join(sorted(set(text)))
    id_of = {character: i for i, character in enumerate(alphabet)}
    ids = np.array([id_of[character] for character in text], dtype=np.uint16)
    cut = int(len(text) * 0.9)
    ids[:cut].tofile(folder / "train.bin")
    ids[cut:].tofile(folder / "val.bin")
    meta = {"vocab_size": len(alphabet), "itos": dict(enumerate(alphabet)), "stoi": id_of}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))


def nanogpt(checkout: Path, data: str, folder: Path, gpu: bool, options: str) -> tuple[Outcome, float]:
    """Run nanoGPT's train.py; also return its validation loss, estimated as in our runs."""
    folder = folder.resolve()
    outcome = Outcome("nanoGPT, its GPU settings" if gpu else "nanoGPT, its CPU settings", 0.0)
    if not (folder / "curve.json").exists():
        write_data(bytes(read_source(resolve_input([data])).data).decode(), folder / "data")
        command = [sys.executable, str(checkout.resolve() / "train.py"), "config/train_shakespeare_char.py"]
        command += [f"--dataset={folder / 'data'}", f"--out_dir={folder}"]
        command += [*([] if gpu else CPU.split()), *options.split()]
        for at, line in stream_lines(command, folder / "log.txt", checkout.resolve()):
            outcome.seconds = at
            if match := re.match(r"step \d+: .*val loss ([\d.]+)", line):
                outcome.curve.append((at, float(match[1])))
        results = json.dumps({"seconds": outcome.seconds, "curve": outcome.curve})
        (folder / "curve.json").write_text(results, encoding="utf-8")
    saved = json.loads((folder / "curve.json").read_text(encoding="utf-8"))
    outcome.seconds, outcome.curve = saved["seconds"], [tuple(pair) for pair in saved["curve"]]
    run = import_checkpoint(folder / "ckpt.pt", data, folder / "run", overwrite=True)
    outcome.score = evaluate(run, split="val+test")
    return outcome, estimate_loss(run.model, run.corpus().split("val"), TrainConfig().eval_tokens)


# --- output --------------------------------------------------------------------------------------


def row(outcome: Outcome, goal: tuple[float, float] | None) -> str:
    assert outcome.score is not None
    exact = outcome.score
    low, high = (bits * np.log(2) * exact.bytes / exact.chars for bits in exact.ci95_bits_per_byte)
    cells = [
        outcome.label,
        f"{outcome.seconds:.1f}",
        f"{exact.nats_per_char:.4f}",
        f"{low:.3f} to {high:.3f}",
    ]
    if goal:
        at = outcome.time_to(goal[0])
        cells.append("not reached" if at is None else f"{at:.1f} s, {goal[1] / at:.1f}x as fast")
    return f"| {' | '.join(cells)} |"


def plot(outcomes: list[Outcome], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for outcome in outcomes:
        axes.plot(*zip(*outcome.curve, strict=True), marker=".", label=outcome.label)
    axes.set(xlabel="seconds since the process started", ylabel="val loss, nats per character (estimates)")
    axes.legend()
    figure.savefig(path, dpi=150, bbox_inches="tight")


def main(
    data: str = typer.Argument("shakespeare", help="A data set or a text file, as running text."),
    recipes: str = typer.Option("transformer-13,transformer-90", help=f"Recipes: {', '.join(RECIPES)}."),
    seeds: str = typer.Option("0", help="Seeds, separated by commas."),
    out: Path = typer.Option(Path("checkpoints/time-to-loss"), help="Directory for the runs."),
    settings: list[str] = typer.Option([], "--set", help="Setting for every recipe; repeatable."),
    nanogpt_folder: Path | None = typer.Option(None, "--nanogpt", help="Also run this clone of nanoGPT."),
    nanogpt_options: str = typer.Option("", help="Extra nanoGPT options, such as --max_iters=100."),
    gpu: bool = typer.Option(False, help="Use nanoGPT's GPU settings."),
    picture: Path | None = typer.Option(None, help="Plot the curves to this file."),
) -> None:
    """Print the table and the curves."""
    outcomes: list[Outcome] = []
    goal: tuple[float, float] | None = None
    if nanogpt_folder:
        baseline, val = nanogpt(nanogpt_folder, data, out / "nanogpt", gpu, nanogpt_options)
        outcomes.append(baseline)
        goal = (val, baseline.seconds)
    heads = ["", "seconds", "val + test", "95 %"] + (["nanoGPT's val loss reached after"] if goal else [])
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for outcome in outcomes:
        print(row(outcome, None if goal is None else (-1.0, 0.0)), flush=True)
    for recipe in recipes.split(","):
        for seed in map(int, seeds.split(",")):
            outcomes.append(train(recipe, data, seed, out, settings))
            print(row(outcomes[-1], goal), flush=True)
    if goal:
        print(f"\nnanoGPT's val loss, estimated as in the curves: {goal[0]:.4f}")
    for outcome in outcomes:
        points = ", ".join(f"{val:.3f} at {at:.1f} s" for at, val in outcome.curve)
        print(f"\n{outcome.label}: {points}")
    if picture:
        plot(outcomes, picture)


if __name__ == "__main__":
    typer.run(main)
