"""Loss against wall time: named recipes, and nanoGPT beside them on the same machine and text.

    python benchmarks/time_to_loss.py shakespeare --recipes transformer-90,lstm-90 --seeds 0,1,2
    python benchmarks/time_to_loss.py shakespeare --nanogpt ../nanoGPT --picture curves.png

Every line is a whole process, one at a time, its clock running from the process's start; runs that are there
already are only scored. A curve is of the estimates of val made in training. The last column is the exact
score: every character of val and test once.

nanoGPT is a checkout of your own (git clone https://github.com/karpathy/nanoGPT), run by its own command
line with its settings for a CPU, or with --gpu those for a GPU. It trains on the first nine tenths of the
text, as the recipes here do. Its checkpoint is imported without unpickling code and scored as a run of
ours, by the same protocol; its time is that of the whole process.
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
    "transformer-13": ("--max-time", "13s"),
    "transformer-90": ("--max-time", "90s"),
    "transformer-300": ("--max-time", "300s"),
    "lstm-90": ("--model", "lstm", "--max-time", "90s"),
    "lstm-300": ("--model", "lstm", "--max-time", "300s"),
    "count": ("--model", "count"),
}
CPU = (
    "--device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size=64 --batch_size=12 "
    "--n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
)
"""nanoGPT's own settings for a CPU, from its README; for a GPU those of its config file are."""


@dataclass
class Outcome:
    """``curve``: seconds since the process began, and val in nats a character."""

    label: str
    seconds: float
    curve: list[tuple[float, float]] = field(default_factory=list)
    score: Score | None = None

    def reached(self, loss: float) -> float | None:
        """Seconds until val was that low."""
        return next((at for at, val in self.curve if val <= loss), None)


def lines_of(command: list[str], log: Path, where: Path | None = None) -> Iterator[tuple[float, str]]:
    """What a process says, line by line, and when. Raises CalledProcessError where it fails."""
    begun = time.perf_counter()
    with (
        subprocess.Popen(
            command,
            cwd=where,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        ) as process,
        log.open("w", encoding="utf-8") as kept,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            kept.write(line)
            yield time.perf_counter() - begun, line
    if process.returncode:
        print(f"see {log}", file=sys.stderr)
        raise subprocess.CalledProcessError(process.returncode, command)
    yield time.perf_counter() - begun, ""


# --- ours ----------------------------------------------------------------------------------------


def follow(command: list[str], metrics: Path) -> Iterator[tuple[float, dict[str, Any]]]:
    """The records a run writes, and when each appeared; at the end an empty one."""
    begun, read = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while True:
            running = process.poll() is None
            lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True) if metrics.exists() else []
            whole = [line for line in lines if line.endswith("\n")]
            for line in whole[read:]:
                yield time.perf_counter() - begun, json.loads(line)
            read = len(whole)
            if not running:
                break
            time.sleep(0.05)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    yield time.perf_counter() - begun, {}


def train(recipe: str, data: str, seed: int, folder: Path, settings: list[str]) -> Outcome:
    """A run of a recipe, unless it is there, scored on val and test."""
    run = folder / f"{recipe}-{seed}"
    kept = run / "time_to_loss.json"
    outcome = Outcome(f"{recipe}, seed {seed}", 0.0)
    if kept.exists():
        saved = json.loads(kept.read_text(encoding="utf-8"))
        outcome.seconds, outcome.curve = saved["seconds"], [tuple(pair) for pair in saved["curve"]]
    else:
        command = [sys.executable, "-m", "makemore", "train", data, *RECIPES[recipe], "--seed", str(seed)]
        command += ["--out", str(run), *(["--overwrite"] if run.exists() else [])]
        command += [part for setting in settings for part in ("--set", setting)]
        for at, record in follow(command, run / "metrics.jsonl"):
            outcome.seconds = at
            if "val" in record:
                outcome.curve.append((at, record["val"]))
        kept.write_text(json.dumps({"seconds": outcome.seconds, "curve": outcome.curve}), encoding="utf-8")
    outcome.score = evaluate(load(run), split="val+test")
    return outcome


# --- nanoGPT -------------------------------------------------------------------------------------


def write_data(text: str, folder: Path) -> None:
    """The text as nanoGPT's prepare.py writes it."""
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
    """A run of nanoGPT's train.py, and its val as our runs estimate theirs."""
    folder = folder.resolve()
    outcome = Outcome("nanoGPT, its GPU settings" if gpu else "nanoGPT, its CPU settings", 0.0)
    if not (folder / "curve.json").exists():
        write_data(bytes(read_source(resolve_input([data]), "utf-8").data).decode(), folder / "data")
        command = [sys.executable, str(checkout.resolve() / "train.py"), "config/train_shakespeare_char.py"]
        command += [f"--dataset={folder / 'data'}", f"--out_dir={folder}"]
        command += [*([] if gpu else CPU.split()), *options.split()]
        for at, line in lines_of(command, folder / "log.txt", checkout.resolve()):
            outcome.seconds = at
            if found := re.match(r"step \d+: .*val loss ([\d.]+)", line):
                outcome.curve.append((at, float(found[1])))
        kept = json.dumps({"seconds": outcome.seconds, "curve": outcome.curve})
        (folder / "curve.json").write_text(kept, encoding="utf-8")
    saved = json.loads((folder / "curve.json").read_text(encoding="utf-8"))
    outcome.seconds, outcome.curve = saved["seconds"], [tuple(pair) for pair in saved["curve"]]
    run = import_checkpoint(folder / "ckpt.pt", data, folder / "run", overwrite=True)
    outcome.score = evaluate(run, split="val+test")
    return outcome, estimate_loss(run.model, run.corpus().split("val"), TrainConfig().eval_tokens)


# --- what is shown -------------------------------------------------------------------------------


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
        at = outcome.reached(goal[0])
        cells.append("not reached" if at is None else f"{at:.1f} s, {goal[1] / at:.1f} times as fast")
    return f"| {' | '.join(cells)} |"


def draw(outcomes: list[Outcome], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for outcome in outcomes:
        axes.plot(*zip(*outcome.curve, strict=True), marker=".", label=outcome.label)
    axes.set(xlabel="seconds since the process began", ylabel="val, nats a character (estimates)")
    axes.legend()
    figure.savefig(path, dpi=150, bbox_inches="tight")


def main(
    data: str = typer.Argument("shakespeare", help="A data set or a running text."),
    recipes: str = typer.Option("transformer-13,transformer-90", help=f"Of {', '.join(RECIPES)}."),
    seeds: str = typer.Option("0", help="Seeds, such as 0,1,2."),
    out: Path = typer.Option(Path("checkpoints/time-to-loss"), help="Folder of the runs."),
    settings: list[str] = typer.Option([], "--set", help="A setting of every recipe; repeatable."),
    nanogpt_folder: Path | None = typer.Option(None, "--nanogpt", help="A checkout of nanoGPT to run too."),
    nanogpt_options: str = typer.Option("", help="More of nanoGPT's options, such as --max_iters=100."),
    gpu: bool = typer.Option(False, help="nanoGPT with its settings for a GPU."),
    picture: Path | None = typer.Option(None, help="Draw the curves here."),
) -> None:
    """Print a table and the curves."""
    outcomes: list[Outcome] = []
    goal: tuple[float, float] | None = None
    if nanogpt_folder:
        theirs, val = nanogpt(nanogpt_folder, data, out / "nanogpt", gpu, nanogpt_options)
        outcomes.append(theirs)
        goal = (val, theirs.seconds)
    heads = ["", "seconds", "val + test", "95 %"] + (["nanoGPT's val reached after"] if goal else [])
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for outcome in outcomes:
        print(row(outcome, None if goal is None else (-1.0, 0.0)), flush=True)
    for recipe in recipes.split(","):
        for seed in map(int, seeds.split(",")):
            outcomes.append(train(recipe, data, seed, out, settings))
            print(row(outcomes[-1], goal), flush=True)
    if goal:
        print(f"\nnanoGPT's val, as the curves estimate it: {goal[0]:.4f}")
    for outcome in outcomes:
        points = ", ".join(f"{val:.3f} at {at:.1f} s" for at, val in outcome.curve)
        print(f"\n{outcome.label}: {points}")
    if picture:
        draw(outcomes, picture)


if __name__ == "__main__":
    typer.run(main)
