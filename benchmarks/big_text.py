"""Train twice on a very large text and print time and peak memory as a Markdown table.

    python benchmarks/big_text.py --gigabytes 2 --folder /tmp/big

The text is synthetic: random words with Zipf-distributed frequencies, in lines of prose. Each measurement is
a complete `makemore` process; the second run of a model reads its tokens from the cache.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import typer

RUNS = {
    "count, order 5": ("count", "--set", "model.order=5"),
    "transformer, 20 steps": ("transformer", "--steps", "20"),
}


def make_text(path: Path, size: int) -> None:
    """Write about ``size`` bytes of synthetic prose."""
    rng = np.random.default_rng(0)
    letters = list("etaoinshrdlucmfwypvbgk")
    weights = 1 / np.arange(2, len(letters) + 2)
    lengths = rng.integers(2, 10, 20_000)
    words = ["".join(rng.choice(letters, n, p=weights / weights.sum())) for n in lengths]
    frequency = 1 / np.arange(10, len(words) + 10)
    frequency /= frequency.sum()
    with path.open("w", encoding="utf-8", newline="") as file:
        while file.tell() < size:
            chosen = rng.choice(len(words), 200_000, p=frequency)
            seps = rng.choice([" ", ", ", ". ", "\n"], len(chosen), p=[0.84, 0.05, 0.03, 0.08])
            file.write("".join(words[i] + sep for i, sep in zip(chosen, seps, strict=True)))


def run(command: list[str]) -> tuple[float, float]:
    """Run a process; return its seconds and its peak memory in GB."""
    start = time.perf_counter()
    output = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    process = os.posix_spawn(command[0], command, os.environ, file_actions=output)
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - start, usage.ru_maxrss / 1e6


def main(
    gigabytes: float = typer.Option(2.0, help="Size of the text in GB."),
    folder: Path = typer.Option(Path("checkpoints/big"), help="Directory for text, cache and runs."),
) -> None:
    """Print the table."""
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "big.txt"
    if not text.exists():
        make_text(text, int(gigabytes * 1e9))
    print(f"{text.stat().st_size / 1e9:.2f} GB\n")
    print("| run | seconds, first run | peak GB | seconds, cached tokens | peak GB |\n|---|---|---|---|---|")
    for label, (model, *options) in RUNS.items():
        out = folder / f"run-{model}"
        os.environ["MAKEMORE_CACHE"] = str(folder / f"cache-{model}")
        command = [sys.executable, "-m", "makemore", "train", str(text), "--mode", "text", "-m", model]
        command += [*options, "-o", str(out), "--overwrite"]
        runs = [run(command) for _ in range(2)]
        cells = [
            f"{value:.1f}" if i == 0 else f"{value:.2f}" for pair in runs for i, value in enumerate(pair)
        ]
        print(f"| {label} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
