"""Measure data-parallel training speed on the CPU by number of processes; print a Markdown table.

    python benchmarks/processes.py shakespeare --processes 1,2
    python benchmarks/processes.py names --models transformer --steps 200

Each measurement is a complete `makemore train`, under torchrun if there are several processes; they divide
the cores evenly. All runs take the same steps: each batch's rows are divided among the processes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import typer


def speed(data: str, model: str, processes: int, threads: int, steps: int) -> tuple[float, float]:
    """Train once; return tokens per second and the final validation loss in nats per token."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    settings = (f"train.eval_interval={steps}", "train.patience=0", "train.schedule=constant")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, *(torchrun if processes > 1 else []), "-m", "makemore", "train", data]
        command += [
            "--model",
            model,
            "--steps",
            str(steps),
            "--out",
            str(out),
            "--device",
            "cpu",
            "--no-compile",
        ]
        command += [part for setting in settings for part in ("--set", setting)]
        env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        records = [
            json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ]
    val = [record["val"] for record in records if "val" in record][-1]
    # The first record includes the setup, the last one the final evaluation.
    rates = [r["tokens_per_second"] for r in records[1:-1] if "val" not in r]
    return statistics.median(rates or [records[-1]["tokens_per_second"]]), val


def main(
    data: str = typer.Argument("shakespeare", help="A data set or a text file."),
    models: str = typer.Option("transformer,lstm", help="Models, separated by commas."),
    processes: str = typer.Option("1,2", help="Numbers of processes, separated by commas."),
    steps: int = typer.Option(150, help="Training steps per run."),
    repeats: int = typer.Option(3, help="Runs per row."),
) -> None:
    """Print the table."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    heads = ["model", "processes", "threads each", "tokens/s, median", "tokens/s, range", "val"]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for model in models.split(","):
        for count in map(int, processes.split(",")):
            threads = max(1, cores // count)
            runs = [speed(data, model, count, threads, steps) for _ in range(repeats)]
            rates = sorted(rate for rate, _ in runs)
            cells = [model, str(count), str(threads), f"{statistics.median(rates):,.0f}"]
            cells += [f"{rates[0]:,.0f} to {rates[-1]:,.0f}", f"{runs[0][1]:.4f}"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
