"""Fixtures of the command-line tests: trained runs to work on, and the program called in this process."""

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
    """Exit status and output of a command."""

    status: int
    out: str
    err: str


def call(*arguments: object) -> Result:
    """Run ``makemore ARGUMENTS`` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run([str(a) for a in arguments])
    return Result(status, out.getvalue(), err.getvalue())


def listing(folder: Path) -> dict[str, str]:
    """Map each path in a folder to the SHA-256 of its content."""
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
    """Train, and fail the test if training fails."""
    result = call("train", *arguments)
    assert result.status == 0, result.err
    return result


@pytest.fixture(scope="session")
def trained_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two texts and a count model trained on each; ``work`` is a copy."""
    folder = tmp_path_factory.mktemp("trained_runs")
    (folder / "words.txt").write_text(words(), encoding="utf-8")
    (folder / "prose.txt").write_text(prose(), encoding="utf-8")
    train(folder / "words.txt", "--model", "count", "--out", folder / "lines")
    train(folder / "prose.txt", "--model", "count", "--out", folder / "text")
    return folder


@pytest.fixture
def work(trained_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of ``trained_runs`` as the current folder."""
    folder = tmp_path / "work"
    shutil.copytree(trained_runs, folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MAKEMORE_DATA", raising=False)
    return folder


@pytest.fixture
def refused(work: Path) -> Callable[..., str]:
    """Function that runs a command, expects a user error that changes no file, and returns its line."""

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
