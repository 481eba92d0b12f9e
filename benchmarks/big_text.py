"""Train on a text much larger than memory should be, twice, and print time and peak memory as Markdown.

    python benchmarks/big_text.py --gigabytes 2 --folder /tmp/big

The text is made up: words of Zipf's frequencies, in lines of prose. Each line of the table is a whole
`makemore` process; the second run of each finds its tokens in a cache of its own.
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
    """Write about ``size`` bytes of made-up prose."""
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
            marks = rng.choice([" ", ", ", ". ", "\n"], len(chosen), p=[0.84, 0.05, 0.03, 0.08])
            file.write("".join(words[i] + mark for i, mark in zip(chosen, marks, strict=True)))


def run(command: list[str]) -> tuple[float, float]:
    """Seconds and peak gigabytes of a process."""
    begun = time.perf_counter()
    process = os.spawnv(os.P_NOWAIT, command[0], command)
    _, status, used = os.wait4(process, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - begun, used.ru_maxrss / 1e6


def main(
    gigabytes: float = typer.Option(2.0, help="Size of the text."),
    folder: Path = typer.Option(Path("checkpoints/big"), help="Where text, cache and runs go."),
) -> None:
    """Print one table."""
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "big.txt"
    if not text.exists():
        make_text(text, int(gigabytes * 1e9))
    print(f"{text.stat().st_size / 1e9:.2f} GB\n")
    print("| run | seconds, first | peak GB | seconds, from the cache | peak GB |\n|---|---|---|---|---|")
    for label, (model, *options) in RUNS.items():
        out = folder / f"run-{model}"
        os.environ["MAKEMORE_CACHE"] = str(folder / f"cache-{model}")
        command = [sys.executable, "-m", "makemore", "train", str(text), "--mode", "text", "-m", model]
        command += [*options, "-o", str(out), "--overwrite"]
        figures = [run(command) for _ in range(2)]
        cells = [
            f"{value:.1f}" if i == 0 else f"{value:.2f}" for pair in figures for i, value in enumerate(pair)
        ]
        print(f"| {label} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
