"""Corrupt files in run directories and check that each corruption is detected, reported and recovered from.

    python benchmarks/corruption.py --times 500

Each time, one random file in a copy of a finished or an interrupted run has a byte flipped, or is truncated,
blanked, deleted or swapped. ``makemore check`` must name the file; ``--resume`` must report it, fall back to
the previous state if a state is damaged, and end with the weights of an undamaged run.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.reliability.corruption import DAMAGES, damage_and_resume


def main(
    times: int = typer.Option(500, help="Number of corruptions."),
    seed: int = typer.Option(0, help="Random seed of the corruptions."),
) -> None:
    """Print the counts; an AssertionError reports a corruption that was missed or not recovered from."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="corruption-") as folder:
        for done in damage_and_resume(Path(folder), times, seed):
            print(f"\r{dict(done)}", end="", file=sys.stderr)
    print(file=sys.stderr)
    print(f"| {' | '.join(DAMAGES)} | undetected | not recovered |")
    print("|---" * (len(DAMAGES) + 2) + "|")
    print(f"| {' | '.join(str(done[kind]) for kind in DAMAGES)} | 0 | 0 |")


if __name__ == "__main__":
    typer.run(main)
