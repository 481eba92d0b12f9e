"""Kill training runs at disk operations and at random moments, resume them and compare the results.

    python benchmarks/kill.py --kills 300

A small transformer with dropout, gradient accumulation, averaged weights and two optimizers is killed with
SIGKILL: half of the time before a write, fsync, rename or removal or during a write, spread over the whole
run, and half of the time at a random moment. Every run must resume from a state no older than the last one
reported as saved, and end with the weights, moments and metrics of an uninterrupted run.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.reliability.fork_server import ForkServer
from tests.reliability.kills import kill_everywhere


def main(
    kills: int = typer.Option(300, help="Number of kills."),
    seed: int = typer.Option(0, help="Random seed of the kill times."),
) -> None:
    """Print the counts; an AssertionError reports the first failure."""
    start = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="kill-"))
    with ForkServer() as server:
        for done in kill_everywhere(server, folder, kills, seed):
            print(f"\r{dict(done)}", end="", file=sys.stderr)
            for run in folder.glob("[cm]*"):
                shutil.rmtree(run)
    print(file=sys.stderr)
    shutil.rmtree(folder)
    print("| kills at a disk operation | kills at a random moment | runs compared | differences | seconds |")
    print("|---|---|---|---|---|")
    seconds = time.monotonic() - start
    print(f"| {done['at a call']} | {done['at a moment']} | {done['runs']} | 0 | {seconds:.0f} |")


if __name__ == "__main__":
    typer.run(main)
