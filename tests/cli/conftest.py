"""A working folder, the program run inside this process, and a look at what it left on disk."""

from __future__ import annotations

import contextlib
import hashlib
import io
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from makemore.cli import run


class Result(NamedTuple):
    """What a command ended with."""

    status: int
    out: str
    err: str


def call(*arguments: object) -> Result:
    """``makemore ARGUMENTS`` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run([str(a) for a in arguments])
    return Result(status, out.getvalue(), err.getvalue())


def listing(folder: Path) -> dict[str, str]:
    """Every path in a folder, with its content."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder"
        for p in sorted(folder.rglob("*"))
    }


def words(n: int = 300, seed: int = 3) -> str:
    rng = random.Random(seed)
    return "".join(
        "".join(rng.choice("bdkl") + rng.choice("aei") for _ in range(rng.randint(1, 4))) + "\n"
        for _ in range(n)
    )


def prose() -> str:
    rng = random.Random(4)
    paragraphs = [" ".join(rng.choice(["bread", "and", "salt", "came"]) for _ in range(60)) for _ in range(8)]
    return "\n\n".join(paragraphs) + "\n"


def train(*arguments: object) -> Result:
    """A training run that has to succeed."""
    result = call("train", *arguments)
    assert result.status == 0, result.err
    return result


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts, and a run on each kind of them; copied, never changed."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "words.txt").write_text(words(), encoding="utf-8")
    (folder / "prose.txt").write_text(prose(), encoding="utf-8")
    train(folder / "words.txt", "--model", "count", "--out", folder / "lines")
    train(folder / "prose.txt", "--model", "count", "--out", folder / "text")
    return folder


@pytest.fixture
def work(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a copy of what was made."""
    folder = tmp_path / "work"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MAKEMORE_DATA", raising=False)
    return folder


@pytest.fixture
def refused(work: Path) -> Callable[..., str]:
    """Runs a command that has to fail as the user's mistake does; returns its one line."""

    def check(*arguments: object) -> str:
        before = listing(work)
        result = call(*arguments)
        assert listing(work) == before
        assert result.status == 2, result
        assert result.out == ""
        lines = result.err.splitlines()
        assert len(lines) == 1, result.err
        assert lines[0].startswith("makemore: ")
        assert "Traceback" not in result.err
        return lines[0]

    return check
