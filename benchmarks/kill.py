"""Training runs killed at every call that touches the disk and at random moments, resumed, and compared.

    python benchmarks/kill.py --kills 300

A small transformer with dropout, accumulation, averaged weights and two optimizers is killed with SIGKILL,
half of the times before a write, fsync, rename or removal or within a write, spread over all of a run's,
half of the times at a random moment. Every run has to resume from a state no older than the last that was
promised, and to end with the weights, moments and metrics of a run that nobody disturbed.
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
    kills: int = typer.Option(300, help="How often to kill, in all."),
    seed: int = typer.Option(0, help="Seed of the moments."),
) -> None:
    """Print the counts; an AssertionError says what went wrong where."""
    begun = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="kill-"))
    with ForkServer() as server:
        for done in kill_everywhere(server, folder, kills, seed):
            print(f"\r{dict(done)}", end="", file=sys.stderr)
            for run in folder.glob("[cm]*"):
                shutil.rmtree(run)
    print(file=sys.stderr)
    shutil.rmtree(folder)
    print("| kills at a call | kills at a random moment | runs compared | different ends | seconds |")
    print("|---|---|---|---|---|")
    seconds = time.monotonic() - begun
    print(f"| {done['at a call']} | {done['at a moment']} | {done['runs']} | 0 | {seconds:.0f} |")


if __name__ == "__main__":
    typer.run(main)
