"""Damage the files of runs at random: each damage must be reported by file name, and the run must resume."""

from __future__ import annotations

import contextlib
import io
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from makemore.cli import run
from makemore.runs.directory import RunDir
from makemore.runs.verification import check_run
from makemore.training.records import TrainingInterrupted
from makemore.training.request import TrainRequest
from makemore.training.train import train
from tests.reliability.kills import SETTINGS, STEPS, make_text

Damage = Callable[[Path, Path, random.Random], None]


def flip(path: Path, other: Path, rng: random.Random) -> None:
    """Change one byte."""
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
    path.write_bytes(data)


def truncate(path: Path, other: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def zero_sector(path: Path, other: Path, rng: random.Random) -> None:
    """Overwrite 512 bytes with zeros, like a lost disk sector."""
    data = path.read_bytes()
    start = rng.randrange(len(data))
    zeroed = data[:start] + bytes(len(data[start : start + 512])) + data[start + 512 :]
    path.write_bytes(zeroed)
    if zeroed == data:  # these bytes were zero already
        flip(path, other, rng)


def delete(path: Path, other: Path, rng: random.Random) -> None:
    path.unlink()


def swap(path: Path, other: Path, rng: random.Random) -> None:
    """Exchange the contents of two files."""
    data = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(data)


DAMAGES: dict[str, Damage] = {
    "byte flips": flip,
    "truncations": truncate,
    "lost sectors": zero_sector,
    "deletions": delete,
    "swaps": swap,
}


def train_command(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run ``makemore train`` on the run in a folder; returns the exit status and stderr."""
    out, err = io.StringIO(), io.StringIO()
    words = str(folder.parent / "words.txt")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run(["train", words, "--out", str(folder), *arguments])
    return status, err.getvalue()


def make_runs(folder: Path) -> dict[str, Path]:
    """Train one run to its end and stop another at two thirds of the steps."""
    folder.mkdir(parents=True, exist_ok=True)
    words = folder / "words.txt"
    words.write_text(make_text(), encoding="utf-8")
    settings = {"steps": STEPS, "device": "cpu", "dtype": "float32", "compile": "no"}
    stop_answers = iter([False] * (STEPS * 2 // 3) + [True])
    for name, stop in (("finished", lambda: False), ("stopped", lambda: next(stop_answers))):
        request = TrainRequest(input=str(words), out=folder / name, train=settings, settings=SETTINGS)
        with contextlib.suppress(TrainingInterrupted):
            train(request, stop=stop)
    return {name: folder / name for name in ("finished", "stopped")}


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    run_dir = RunDir(folder)
    return run_dir.read_model(run_dir.read_config().run_id)


def damage_once(kind: str, run_path: Path, rng: random.Random) -> list[Path]:
    """Damage one random file of a run; returns the damaged files."""
    files = sorted(p for p in run_path.rglob("*") if p.is_file())
    path = rng.choice(files)
    other = rng.choice([p for p in files if p != path])
    DAMAGES[kind](path, other, rng)
    return [path, other] if kind == "swaps" else [path]


def damage_and_resume(folder: Path, times: int, seed: int = 0) -> Iterator[Counter[str]]:
    """Damage, check and resume copies of two runs; yields the counts so far."""
    rng = random.Random(seed)
    originals = make_runs(folder)
    expected = load_weights(originals["finished"])
    counts: Counter[str] = Counter()
    for i in range(times):
        kind, original = list(DAMAGES)[i % len(DAMAGES)], rng.choice(sorted(originals))
        copy = folder / f"copy-{i}"
        shutil.copytree(originals[original], copy)
        damaged = damage_once(kind, copy, rng)
        # Of two swapped files of one state, only the one with the checksums need be reported.
        all_or_any = any if kind == "swaps" else all
        problems = check_run(copy)
        reported = [any(_mentions(path, line) for line in problems) for path in damaged]
        assert all_or_any(reported), (kind, damaged, problems)
        must_name = _read_on_resume(damaged, copy)
        status, err = train_command(copy, "--resume")
        assert not must_name or all_or_any(str(path) in err for path in must_name), (kind, damaged, err)
        if len({path.parent for path in damaged if path.parent.parent != folder}) > 1:
            assert (status, err.count("\n")) == (2, 1), (kind, damaged, err)  # the swap damaged both states
        else:
            assert status == 0, (kind, damaged, err)
            resumed = load_weights(copy)
            assert all(torch.equal(resumed[name], expected[name]) for name in expected), (kind, damaged)
            assert not [p for p in check_run(copy) if "/state/" not in p], (kind, damaged, check_run(copy))
        shutil.rmtree(copy)
        counts[kind] += 1
        yield counts


def _mentions(path: Path, line: str) -> bool:
    return str(path) in line or (path.name == "config.json" and "it has no config.json" in line)


def _read_on_resume(damaged: list[Path], copy: Path) -> list[Path]:
    """Damaged files that resuming reads before it rewrites them."""
    newest = max(p.name for p in (copy / "state").iterdir())
    unread = {"samples.txt", "result.json"}
    return [p for p in damaged if p.name not in unread and (p.parent == copy or p.parent.name == newest)]
