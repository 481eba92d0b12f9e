"""Bytes flipped, files cut, blanked, deleted and swapped in run directories: noticed, named, mended.

    python benchmarks/rot.py --times 500

Each damage is done to a copy of a finished or of a stopped run, to a file and a place chosen at random.
``makemore check`` has to name the file; ``--resume`` has to say so, to go back to the state before where a
state is hurt, and to end with the weights of the run that nothing happened to.
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
    times: int = typer.Option(500, help="How often to do damage, in all."),
    seed: int = typer.Option(0, help="Seed of the damage."),
) -> None:
    """Print the counts; an AssertionError says which damage went unnoticed or unmended."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="rot-") as folder:
        for done in damage_and_resume(Path(folder), times, seed):
            print(f"\r{dict(done)}", end="", file=sys.stderr)
    print(file=sys.stderr)
    print(f"| {' | '.join(DAMAGES)} | unnoticed | not mended |")
    print("|---" * (len(DAMAGES) + 2) + "|")
    print(f"| {' | '.join(str(done[kind]) for kind in DAMAGES)} | 0 | 0 |")


if __name__ == "__main__":
    typer.run(main)
