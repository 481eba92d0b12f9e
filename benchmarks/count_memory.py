"""Train `count` with its defaults on the beginnings of a text and print time and peak memory as a table.

    python benchmarks/count_memory.py big.txt --megabytes 1,4.7,10,20,22,30,100

Each row is a complete `makemore` process, which also scores and samples.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import typer
from big_text import run


def main(
    text: Path = typer.Argument(help="A text of at least the largest size."),
    megabytes: str = typer.Option("1,10,100", help="Sizes in MB, separated by commas."),
) -> None:
    """Print the table."""
    print("| MB | order | n-grams | seconds | peak MB | nats/token |\n|---|---|---|---|---|---|")
    for size in megabytes.split(","):
        with TemporaryDirectory() as name, text.open("rb") as source:
            folder = Path(name)
            part, out = folder / "part.txt", folder / "run"
            part.write_bytes(source.read(int(float(size) * 1e6)).decode(errors="ignore").encode())
            os.environ["MAKEMORE_CACHE"] = str(folder / "cache")
            command = [sys.executable, "-m", "makemore", "train", str(part), "-m", "count", "-qo", str(out)]
            seconds, gigabytes = run([*command, "--mode", "text"])
            result = json.loads((out / "result.json").read_text(encoding="utf-8"))
            order = json.loads((out / "config.json").read_text(encoding="utf-8"))["model"]["order"]
        cells = [size, order, f"{result['parameters']:,}", f"{seconds:.1f}", f"{gigabytes * 1000:.0f}"]
        print("|", " | ".join(map(str, cells)), f"| {result['val']['nll']:.4f} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
