"""A play server, started from the command line."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from makemore.training.request import TrainRequest
from makemore.training.train import train
from tests.cli.conftest import prose, words

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")


class PlayServer(NamedTuple):
    folder: Path
    address: str
    port: int
    token: str
    process: subprocess.Popen[str]


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlayServer]:
    """Serve the runs ``lines`` (mlp), ``text`` (count) and ``bytes`` (count with the byte tokenizer)."""
    folder = tmp_path_factory.mktemp("play")
    (folder / "words.txt").write_text(words(), encoding="utf-8")
    (folder / "prose.txt").write_text(prose(), encoding="utf-8")
    (folder / "accents.txt").write_text(prose().replace("e", "é"), encoding="utf-8")
    settings = {"steps": 30, "eval_interval": 10}
    train(TrainRequest(input=str(folder / "words.txt"), model="mlp", out=folder / "lines", train=settings))
    train(TrainRequest(input=str(folder / "prose.txt"), model="count", out=folder / "text"))
    train(
        TrainRequest(input=str(folder / "accents.txt"), model="count", tokenizer="byte", out=folder / "bytes")
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "makemore", "play", "lines", "text", "bytes"]
    paths = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}
    )
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    match = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/#([\w-]{32})", address)
    assert match, address
    try:
        yield PlayServer(folder, address, int(match[1]), match[2], process)
        if os.name == "posix":
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
