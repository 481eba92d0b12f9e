"""The comparison of models with compressors, on short texts."""

from __future__ import annotations

import json
import lzma
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.cli.conftest import prose, words
from tests.scripts import ROOT, loaded

needs_xz = pytest.mark.skipif(shutil.which("xz") is None, reason="xz is not installed")


@pytest.fixture
def predictors() -> Iterator[ModuleType]:
    with loaded("benchmarks/predictors.py") as module:
        yield module


def prose_parts() -> tuple[str, bytes, bytes]:
    """A running text with two bytes per "a", its first nine tenths in characters, and all of it."""
    text = prose().replace("a", "á")
    return text, text[: len(text) * 9 // 10].encode(), text.encode()


def lines_parts() -> tuple[str, bytes, bytes]:
    """A list with blank lines; its lines as makemore shuffles them, the first nine tenths and all."""
    text = words().replace("\n", "\n\n", 40)
    lines = words().splitlines(keepends=True)
    random.Random(42).shuffle(lines)
    return text, "".join(lines[: len(lines) * 9 // 10]).encode(), "".join(lines).encode()


@needs_xz
@pytest.mark.parametrize(("mode", "parts"), [("text", prose_parts()), ("lines", lines_parts())])
def test_compressors_bits_per_byte(
    predictors: ModuleType, tmp_path: Path, mode: str, parts: tuple[str, bytes, bytes]
) -> None:
    """What Python's lzma needs for the last tenth more than for the first nine, padded."""
    text, first, whole = parts
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    subject = predictors.prepare(tmp_path / "text.txt", mode, tmp_path)
    held_out = len(whole) - len(first)
    padded = first + b"\n" * held_out
    assert (subject.train_bytes, subject.held_out_bytes) == (len(first), held_out)
    assert (subject.folder / "train" / "text").read_bytes() == padded
    assert (subject.folder / "whole" / "text").read_bytes() == whole
    cells = dict(predictors.compressor_cells("xz -9e", subject))
    sizes = [len(lzma.compress(part, preset=9 | lzma.PRESET_EXTREME)) for part in (padded, whole)]
    assert cells["adaptive"]["bits_per_byte"] == 8 * (sizes[1] - sizes[0]) / held_out
    assert sizes[1] > sizes[0]


def test_command_that_fails(predictors: ModuleType, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    with pytest.raises(predictors.UserError, match=r"no such model \(exit status 1\)"):
        predictors.run(command, tmp_path / "log")


def test_peak_memory_is_the_commands_own(predictors: ModuleType, tmp_path: Path) -> None:
    """It isn't this process's, which is larger than 100 MB."""
    used = [
        predictors.run([sys.executable, "-S", "-c", f"x = bytearray(b'x') * {n}"], tmp_path / "log")[0]
        for n in (1, 50_000_000)
    ]
    assert used[0]["peak_mb"] < 40
    assert 45 < used[1]["peak_mb"] - used[0]["peak_mb"] < 60


@pytest.mark.slow
def test_table(tmp_path: Path) -> None:
    """One model succeeds and one doesn't exist; the second call only repeats what failed."""
    (tmp_path / "text.txt").write_text(prose(), encoding="utf-8")
    command = [
        sys.executable,
        ROOT / "benchmarks" / "predictors.py",
        "text.txt",
        "missing.txt",
        "--models",
        "count,nothing",
    ]
    command += ["--seconds", "1", "--out", "cells", "--json", "rows.json"]
    results = []
    for _ in range(2):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=300)
        assert done.returncode == 1, done.stderr
        assert "unknown model 'nothing'" in done.stderr
        assert "missing.txt" in done.stderr
        assert "Traceback" not in done.stderr
        results.append(json.loads((tmp_path / "rows.json").read_text(encoding="utf-8")))
    assert results[0] == results[1]  # also the seconds
    count, nothing = results[0][:2]
    assert count["frozen"]["bytes"] == count["adaptive"]["bytes"] == count["held_out_bytes"]
    assert 0 < count["frozen"]["bits_per_byte"] < 8
    assert 0 < count["adaptive"]["bits_per_byte"] < 8
    assert count["training"]["peak_mb"] > 50
    assert "failed" in nothing
    assert "training" not in nothing
    assert f"| text.txt | count | {count['training']['seconds']:.1f} |" in done.stdout
