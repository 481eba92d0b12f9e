"""Several processes train as one does: real torchrun launches on the CPU."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from makemore.errors import UserError
from makemore.runs.directory import RunDir
from makemore.runtime import distributed as parallel
from makemore.training.request import TrainRequest
from makemore.training.train import _after_restart, train
from tests.runs.test_directory import CONFIG

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or not torch.distributed.is_available(),
    reason="torchrun needs libuv or is absent",
)
ROOT = Path(__file__).resolve().parents[2]
PLAIN = ("train.patience=0", "train.eval_interval=10", "train.schedule=constant", "train.compile=no")
TINY = {
    "transformer": ("model.n_layer=1", "model.n_embd=16", "model.dropout=0", "train.batch_tokens=512"),
    "lstm": (
        *("model.n_hidden=16", "model.n_embd=8", "model.dropout=0", "train.batch_tokens=448"),
        *("train.loader=streams", "train.block_size=64"),
    ),
    "count": ("model.order=5", "train.batch_tokens=600"),
    "wavenet": ("train.batch_tokens=512",),
}


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(1)
    words = [
        "".join(rng.choice("abcdefg") + rng.choice("aeiou") for _ in range(rng.randint(1, 5)))
        for _ in range(900)
    ]
    path = tmp_path_factory.mktemp("text") / "lines.txt"
    path.write_text("\n".join(words) + "\n", encoding="utf-8")
    return path


def start(program: Sequence[str], *options: str) -> subprocess.Popen[str]:
    """Two processes by torchrun."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *options]
    # Names of machines don't always lead somewhere.
    interface = "lo" if sys.platform == "linux" else "lo0"
    return subprocess.Popen(
        [sys.executable, *launch, *program],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": interface},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )


def finish(process: subprocess.Popen[str]) -> str:
    try:
        return process.communicate(timeout=200)[0]
    finally:
        process.kill()


WORKER = """
import contextlib, json, os, sys, time
from pathlib import Path
from makemore.cli import run
folder, rank, nth = Path(sys.argv[1]), os.environ["RANK"], 0
while True:
    while not (folder / f"{nth}.json").exists():
        time.sleep(0.02)
    arguments = json.loads((folder / f"{nth}.json").read_text())
    if not arguments:
        break
    with (folder / f"{nth}-{rank}.txt").open("w", encoding="utf-8") as said:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = exec(arguments[1]) if arguments[0] == "-c" else run(arguments)
    (folder / f"{nth}-{rank}.new").write_text(str(status))
    (folder / f"{nth}-{rank}.new").rename(folder / f"{nth}-{rank}.status")
    nth += 1
"""


class Pair:
    """Two processes that run one command line after another: most of a launch is importing torch."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.jobs = folder, 0
        (folder / "worker.py").write_text(WORKER, encoding="utf-8")
        self.process = start([str(folder / "worker.py"), str(folder)])

    def run(self, arguments: Sequence[str]) -> str:
        """What both have said. Both must end well."""
        nth, self.jobs = self.jobs, self.jobs + 1
        (self.folder / "new").write_text(json.dumps(arguments))
        (self.folder / "new").rename(self.folder / f"{nth}.json")
        for rank in range(2):
            wait_for(self.folder, f"{nth}-{rank}.status", self.process)
        said = "".join((self.folder / f"{nth}-{rank}.txt").read_text(encoding="utf-8") for rank in range(2))
        for rank in range(2):
            assert (self.folder / f"{nth}-{rank}.status").read_text() in ("0", "None"), said
        return said

    def close(self) -> None:
        (self.folder / f"{self.jobs}.json").write_text("[]")
        finish(self.process)

    def train(
        self, path: Path, model: str, out: Path, *settings: str, steps: int = 50, flags: Any = ()
    ) -> str:
        return self.run([*arguments(path, model, out, *settings, steps=steps), *flags])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    two = Pair(tmp_path_factory.mktemp("pair"))
    yield two
    two.close()


def wait_for(path: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    for _ in range(2000):
        if any(path.glob(pattern)):
            return
        if process.poll() is not None:
            raise AssertionError(finish(process))
        time.sleep(0.1)
    raise AssertionError(f"no {pattern}")


def arguments(path: Path, model: str, out: Path, *settings: str, steps: int = 50) -> list[str]:
    chosen = [part for s in (*PLAIN, *TINY[model], *settings) for part in ("--set", s)]
    command = ["train", str(path), "-m", model, "-o", str(out), "--steps", str(steps)]
    return [*command, "--device", "cpu", "--dtype", "float32", *chosen]


def alone(path: Path, model: str, out: Path, *settings: str, steps: int = 50, resume: bool = False) -> None:
    """The same run in this process."""
    wanted = {"steps": steps, "device": "cpu", "dtype": "float32"}
    train(
        TrainRequest(
            str(path), model, out=out, train=wanted, settings=(*PLAIN, *TINY[model], *settings), resume=resume
        )
    )


def curve(out: Path, what: str = "val") -> list[float]:
    return [record[what] for record in RunDir(out).read_metrics() if what in record]


@pytest.mark.parametrize("model", ["transformer", "lstm"])
def test_two_processes_have_the_loss_curve_of_one(
    pair: Pair, lines: Path, tmp_path: Path, model: str
) -> None:
    alone(lines, model, tmp_path / "one", "train.grad_accum_steps=2")
    said = pair.train(lines, model, tmp_path / "two", "train.grad_accum_steps=2")
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert len(one) >= 5
    assert np.ptp(one) > 0.05, "it must have learned something"
    np.testing.assert_allclose(two, one, atol=1e-4, rtol=0)
    assert curve(tmp_path / "two", "tokens")[-1] == curve(tmp_path / "one", "tokens")[-1]
    assert said.count("samples:") == 1, "only one process prints"


@pytest.mark.parametrize("mode", ["lines", "text"])
def test_counts_of_two_processes_are_those_of_one(pair: Pair, lines: Path, tmp_path: Path, mode: str) -> None:
    train(
        TrainRequest(str(lines), "count", out=tmp_path / "one", corpus={"mode": mode}, settings=TINY["count"])
    )
    pair.train(lines, "count", tmp_path / "two", flags=("--mode", mode))
    one, two = (load_file(tmp_path / run / "model.safetensors") for run in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert int(one["counts_1"].sum()) > 3000


def test_a_run_resumes_with_another_number_of_processes(pair: Pair, lines: Path, tmp_path: Path) -> None:
    alone(lines, "lstm", tmp_path / "straight", steps=20)
    pair.train(lines, "lstm", tmp_path / "run", steps=10)
    alone(lines, "lstm", tmp_path / "run", steps=20, resume=True)
    np.testing.assert_allclose(curve(tmp_path / "run")[-1], curve(tmp_path / "straight")[-1], atol=1e-4)
    pair.train(lines, "lstm", tmp_path / "run", steps=30, flags=("--resume",))
    alone(lines, "lstm", tmp_path / "straight", steps=30, resume=True)
    np.testing.assert_allclose(curve(tmp_path / "run")[-1], curve(tmp_path / "straight")[-1], atol=1e-4)


def test_a_sharded_run_is_the_same_and_resumes_in_one_process(
    pair: Pair, lines: Path, tmp_path: Path
) -> None:
    adamw = ("train.optimizer=adamw", "train.ema=0.9")
    alone(lines, "transformer", tmp_path / "straight", *adamw, steps=20)
    pair.train(lines, "transformer", tmp_path / "run", *adamw, steps=10, flags=("--shard",))
    assert RunDir(tmp_path / "run").read_config()["train"]["shard"]
    alone(lines, "transformer", tmp_path / "run", *adamw, steps=20, resume=True)
    np.testing.assert_allclose(curve(tmp_path / "run"), [*curve(tmp_path / "straight")], atol=1e-4)


def test_batch_statistics_and_few_rows(pair: Pair, lines: Path, tmp_path: Path) -> None:
    """A batch of one row leaves nothing for the second process."""
    pair.train(lines, "wavenet", tmp_path / "run", "train.batch_tokens=2", steps=10)
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_a_signal_leaves_a_state_that_resumes(lines: Path, tmp_path: Path) -> None:
    process = start(
        [str(ROOT / "train.py"), *arguments(lines, "transformer", tmp_path / "run", steps=10**6)[1:]]
    )
    wait_for(tmp_path, "run/metrics.jsonl", process)
    process.send_signal(signal.SIGINT)
    said = finish(process)
    assert said.count("stopped; add --resume") == 1, said
    saved = RunDir(tmp_path / "run").read_state(RunDir(tmp_path / "run").read_config()["run_id"])
    assert saved.state["trainer"]["step"] > 0
    assert not saved.problems


FAILING = """
import os, pathlib, signal, sys, threading, time
from makemore.cli import main
def kill():
    while not any(pathlib.Path(sys.argv[sys.argv.index("-o") + 1]).glob("state/*/state.json")):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    threading.Thread(target=kill, daemon=True).start()
main()
"""


def test_torchrun_restarts_from_the_last_state(lines: Path, tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING, encoding="utf-8")
    run = arguments(lines, "transformer", tmp_path / "run", "train.save_interval=0", steps=40)
    process = start([str(tmp_path / "failing.py"), *run], "--max-restarts=1", "--monitor-interval=0.1")
    said = finish(process)
    assert process.returncode == 0, said
    assert said.count("resuming at step") == 1, said
    steps = curve(tmp_path / "run", "step")
    assert steps[-1] == 40
    assert steps == sorted(steps)


@pytest.mark.parametrize(("launch", "resume"), [("this", True), ("another", False)])
def test_a_restart_goes_on_with_its_own_run_only(
    lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launch: str, resume: bool
) -> None:
    monkeypatch.setattr(parallel, "_dist_info", parallel.DistInfo(0, 2, 0))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "this")
    RunDir(tmp_path / "run").create({**CONFIG, "launch": launch}, {}, {})
    request = TrainRequest(str(lines), out=tmp_path / "run")
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    assert _after_restart(request) == request, "the first attempt"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert _after_restart(request) == replace(request, resume=resume)


def test_processes_meet_in_a_store_that_a_dead_attempt_has_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchrun's other attempts leave names and greetings behind."""
    monkeypatch.setattr(parallel, "_earlier_attempt", False)
    store = torch.distributed.HashStore()
    for attempt in ("first", "second"):
        places = [parallel.DistInfo(rank, 3) for rank in (1, 2, 0)]
        with ThreadPoolExecutor() as pool:
            met = pool.map(lambda place: parallel._join_attempt(store, place, lambda: False), places)
        names = set(met)
        assert len(names) == 1
        assert parallel.was_restarted() == (attempt == "second")
        assert store.get(parallel.ATTEMPT_KEY).decode() in names


def test_a_process_that_waits_for_the_others_can_be_stopped() -> None:
    for rank in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            parallel._join_attempt(torch.distributed.HashStore(), parallel.DistInfo(rank, 2), lambda: True)


@pytest.mark.parametrize("rank", [0, 1])
def test_who_does_not_come_is_missed(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    monkeypatch.setattr(parallel, "JOIN_TIMEOUT", 0.1)
    with pytest.raises(UserError, match="did not join"):
        parallel._join_attempt(torch.distributed.HashStore(), parallel.DistInfo(rank, 2), lambda: False)


ONE_FAILS = """
from makemore.runtime import distributed as parallel
from makemore.cli import _fail
from makemore.errors import UserError
try:
    with parallel.session():
        assert parallel.highest(parallel.rank()) == 1
        assert parallel.from_main(parallel.rank()) == 0
        assert parallel.gather(parallel.rank()) == ([0, 1] if parallel.is_main() else [])
        if not parallel.is_main():
            raise UserError("the disk is full")
        parallel.from_main("never sent")
        raise AssertionError
except UserError as error:
    assert _fail(str(error)) == 2
"""


def test_an_error_in_one_process_is_told_once_by_the_first(pair: Pair) -> None:
    said = pair.run(["-c", ONE_FAILS])
    assert said.count("makemore: the disk is full") == 1, said


@pytest.mark.parametrize(("rows", "size"), [(7, 3), (2, 4), (0, 2), (12, 4)])
def test_rows_are_cut_as_numpy_cuts_them(monkeypatch: pytest.MonkeyPatch, rows: int, size: int) -> None:
    for rank, wanted in enumerate(np.array_split(np.arange(rows), size)):
        monkeypatch.setattr(parallel, "_dist_info", parallel.DistInfo(rank, size))
        np.testing.assert_array_equal(np.arange(rows)[parallel.rank_slice(rows)], wanted)


def test_a_process_alone_needs_no_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    # What a batch system sets of its own accord isn't torchrun.
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert parallel.dist_info_from_env() == parallel.DistInfo(0, 1, 0)
    with contextlib.ExitStack() as stack:
        stack.enter_context(parallel.process_group())
        assert (parallel.all_reduce_max(3.5), parallel.broadcast("x"), parallel.gather(1)) == (3.5, "x", [1])
        assert parallel.rank_slice(5) == slice(0, 5)
