"""Runs whose files rot: every damage is noticed by name, and none keeps a run from going on."""

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
from makemore.training.request import TrainRequest
from makemore.training.train import TrainingInterrupted, train
from tests.reliability.kills import SETTINGS, STEPS, text

Damage = Callable[[Path, Path, random.Random], None]


def flip(path: Path, other: Path, rng: random.Random) -> None:
    """Another byte in place of one."""
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
    path.write_bytes(data)


def truncate(path: Path, other: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def blank(path: Path, other: Path, rng: random.Random) -> None:
    """A sector of zeros, as a disk that lost it reads."""
    data = path.read_bytes()
    at = rng.randrange(len(data))
    lost = data[:at] + bytes(len(data[at : at + 512])) + data[at + 512 :]
    path.write_bytes(lost)
    if lost == data:  # it held zeros
        flip(path, other, rng)


def delete(path: Path, other: Path, rng: random.Random) -> None:
    path.unlink()


def swap(path: Path, other: Path, rng: random.Random) -> None:
    """Two files in each other's place."""
    data = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(data)


DAMAGES: dict[str, Damage] = {
    "byte flips": flip,
    "truncations": truncate,
    "lost sectors": blank,
    "deletions": delete,
    "swaps": swap,
}


def command(folder: Path, *arguments: str) -> tuple[int, str]:
    """Status and stderr of ``makemore train`` on the run in a folder."""
    out, err = io.StringIO(), io.StringIO()
    words = str(folder.parent / "words.txt")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run(["train", words, "--out", str(folder), *arguments])
    return status, err.getvalue()


def make_runs(folder: Path) -> dict[str, Path]:
    """One run that ended, one that was stopped at two thirds."""
    folder.mkdir(parents=True, exist_ok=True)
    words = folder / "words.txt"
    words.write_text(text(), encoding="utf-8")
    recipe = {"steps": STEPS, "device": "cpu", "dtype": "float32", "compile": "no"}
    asked = iter([False] * (STEPS * 2 // 3) + [True])
    for name, stop in (("finished", lambda: False), ("stopped", lambda: next(asked))):
        request = TrainRequest(str(words), out=folder / name, train=recipe, settings=SETTINGS)
        with contextlib.suppress(TrainingInterrupted):
            train(request, stop=stop)
    return {name: folder / name for name in ("finished", "stopped")}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    run_dir = RunDir(folder)
    return run_dir.read_model(run_dir.read_config()["run_id"])


def damage_once(kind: str, run_path: Path, rng: random.Random) -> list[Path]:
    """Do it to one file of a run, chosen at random; returns the files it was done to."""
    files = sorted(p for p in run_path.rglob("*") if p.is_file())
    path = rng.choice(files)
    other = rng.choice([p for p in files if p != path])
    DAMAGES[kind](path, other, rng)
    return [path, other] if kind == "swaps" else [path]


def rot(folder: Path, times: int, seed: int = 0) -> Iterator[Counter[str]]:
    """Damage copies of two runs, check them, resume them. Yields what has happened so far."""
    rng = random.Random(seed)
    originals = make_runs(folder)
    wanted = weights(originals["finished"])
    done: Counter[str] = Counter()
    for i in range(times):
        kind, original = list(DAMAGES)[i % len(DAMAGES)], rng.choice(sorted(originals))
        copy = folder / f"copy-{i}"
        shutil.copytree(originals[original], copy)
        hurt = damage_once(kind, copy, rng)
        # Of two files of one state, the one that says what the other has to be is named.
        enough = any if kind == "swaps" else all
        problems = check_run(copy)
        named = [any(_names(path, line) for line in problems) for path in hurt]
        assert enough(named), (kind, hurt, problems)
        said = _needed(hurt, copy)
        status, err = command(copy, "--resume")
        assert not said or enough(str(path) in err for path in said), (kind, hurt, err)
        if len({path.parent for path in hurt if path.parent.parent != folder}) > 1:
            assert (status, err.count("\n")) == (2, 1), (kind, hurt, err)  # a swap hurts both states
        else:
            assert status == 0, (kind, hurt, err)
            resumed = weights(copy)
            assert all(torch.equal(resumed[name], wanted[name]) for name in wanted), (kind, hurt)
            assert not [p for p in check_run(copy) if "/state/" not in p], (kind, hurt, check_run(copy))
        shutil.rmtree(copy)
        done[kind] += 1
        yield done


def _names(path: Path, line: str) -> bool:
    return str(path) in line or (path.name == "config.json" and "it has no config.json" in line)


def _needed(hurt: list[Path], copy: Path) -> list[Path]:
    """Those of the damaged files that resuming looks at before it writes them anew."""
    newest = max(p.name for p in (copy / "state").iterdir())
    unread = {"samples.txt", "result.json"}
    return [p for p in hurt if p.name not in unread and (p.parent == copy or p.parent.name == newest)]
