"""Data-parallel training matches training in one process: real torchrun launches on the CPU."""

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
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from makemore.errors import UserError
from makemore.runs.directory import RunDir
from makemore.runs.schema import Environment
from makemore.runs.verification import check_run
from makemore.runtime import distributed
from makemore.training.fitting import _resumes_after_restart
from makemore.training.request import TrainRequest
from makemore.training.train import train
from tests.runs.test_directory import CONFIG

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform == "win32" or not torch.distributed.is_available(),
        reason="torchrun needs libuv or is absent",
    ),
]
ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = ("-m", "torch.distributed.run")
FORKING_TORCHRUN = (str(Path(__file__).with_name("forking_torchrun.py")),)
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


def start(
    program: Sequence[str], *options: str, torchrun: Sequence[str] = FORKING_TORCHRUN
) -> subprocess.Popen[str]:
    """Start a program in two processes with torchrun."""
    # The host name may not resolve.
    interface = "lo" if sys.platform == "linux" else "lo0"
    return subprocess.Popen(
        [sys.executable, *torchrun, "--standalone", "--nproc-per-node=2", *options, *program],
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
    with (folder / f"{nth}-{rank}.txt").open("w", encoding="utf-8") as log:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            status = exec(arguments[1]) if arguments[0] == "-c" else run(arguments)
    (folder / f"{nth}-{rank}.new").write_text(str(status))
    (folder / f"{nth}-{rank}.new").rename(folder / f"{nth}-{rank}.status")
    nth += 1
"""


class Pair:
    """Two processes that run one command after another, because most of a launch is importing torch."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.n_jobs = folder, 0
        (folder / "worker.py").write_text(WORKER, encoding="utf-8")
        self.process = start([str(folder / "worker.py"), str(folder)])

    def run(self, arguments: Sequence[str]) -> str:
        """Return the output of both processes; both must succeed."""
        nth, self.n_jobs = self.n_jobs, self.n_jobs + 1
        (self.folder / "new").write_text(json.dumps(arguments))
        (self.folder / "new").rename(self.folder / f"{nth}.json")
        for rank in range(2):
            wait_for(self.folder, f"{nth}-{rank}.status", self.process)
        output = "".join((self.folder / f"{nth}-{rank}.txt").read_text(encoding="utf-8") for rank in range(2))
        for rank in range(2):
            assert (self.folder / f"{nth}-{rank}.status").read_text() in ("0", "None"), output
        return output

    def close(self) -> None:
        (self.folder / f"{self.n_jobs}.json").write_text("[]")
        finish(self.process)

    def train(
        self, path: Path, model: str, out: Path, *settings: str, steps: int = 50, flags: Any = ()
    ) -> str:
        return self.run([*arguments(path, model, out, *settings, steps=steps), *flags])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    workers = Pair(tmp_path_factory.mktemp("pair"))
    yield workers
    workers.close()


def wait_for(path: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    for _ in range(2000):
        if any(path.glob(pattern)):
            return
        if process.poll() is not None:
            raise AssertionError(finish(process))
        time.sleep(0.1)
    raise AssertionError(f"no {pattern}")


def arguments(path: Path, model: str, out: Path, *settings: str, steps: int = 50) -> list[str]:
    flags = [part for s in (*PLAIN, *TINY[model], *settings) for part in ("--set", s)]
    command = ["train", str(path), "-m", model, "-o", str(out), "--steps", str(steps)]
    return [*command, "--device", "cpu", "--dtype", "float32", *flags]


def train_one(
    path: Path, model: str, out: Path, *settings: str, steps: int = 50, resume: bool = False
) -> None:
    """Train in this process with the same settings."""
    budget = {"steps": steps, "device": "cpu", "dtype": "float32"}
    train(
        TrainRequest(
            input=str(path),
            model=model,
            out=out,
            train=budget,
            settings=(*PLAIN, *TINY[model], *settings),
            resume=resume,
        )
    )


def curve(out: Path, key: str = "val") -> list[float]:
    return [record[key] for record in RunDir(out).metrics.read() if key in record]


@pytest.mark.parametrize("model", ["transformer", "lstm"])
def test_two_processes_give_the_same_losses_as_one(
    pair: Pair, lines: Path, tmp_path: Path, model: str
) -> None:
    train_one(lines, model, tmp_path / "one", "train.grad_accum_steps=2")
    output = pair.train(lines, model, tmp_path / "two", "train.grad_accum_steps=2")
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert len(one) >= 5
    assert np.ptp(one) > 0.05, "it must have learned something"
    np.testing.assert_allclose(two, one, atol=1e-4, rtol=0)
    assert curve(tmp_path / "two", "tokens")[-1] == curve(tmp_path / "one", "tokens")[-1]
    assert output.count("samples:") == 1, "only one process prints"


@pytest.mark.parametrize("mode", ["lines", "text"])
def test_two_processes_count_the_same_as_one(pair: Pair, lines: Path, tmp_path: Path, mode: str) -> None:
    train(
        TrainRequest(
            input=str(lines),
            model="count",
            out=tmp_path / "one",
            corpus={"mode": mode},
            settings=TINY["count"],
        )
    )
    pair.train(lines, "count", tmp_path / "two", flags=("--mode", mode))
    one, two = (load_file(tmp_path / run / "model.safetensors") for run in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert int(one["counts"].sum()) > 3000
    run = RunDir(tmp_path / "two")
    state = run.states.read_newest(run.read_config().run_id).state
    assert torch.equal(state["learner"]["model"]["counts"], two["counts"])


def test_a_run_resumes_with_another_number_of_processes(pair: Pair, lines: Path, tmp_path: Path) -> None:
    train_one(lines, "lstm", tmp_path / "straight", steps=20)
    pair.train(lines, "lstm", tmp_path / "run", steps=10)
    train_one(lines, "lstm", tmp_path / "run", steps=20, resume=True)
    np.testing.assert_allclose(curve(tmp_path / "run")[-1], curve(tmp_path / "straight")[-1], atol=1e-4)
    pair.train(lines, "lstm", tmp_path / "run", steps=30, flags=("--resume",))
    train_one(lines, "lstm", tmp_path / "straight", steps=30, resume=True)
    np.testing.assert_allclose(curve(tmp_path / "run")[-1], curve(tmp_path / "straight")[-1], atol=1e-4)


ADAMW = ("train.optimizer=adamw", "train.ema=0.9")


def test_sharded_run_matches_and_resumes_in_any_number_of_processes(
    pair: Pair, lines: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train_one(lines, "transformer", tmp_path / "straight", *ADAMW, steps=50)
    pair.train(lines, "transformer", run, *ADAMW, steps=10, flags=("--shard",))
    assert RunDir(run).read_config().train.runtime.shard
    pair.train(lines, "transformer", run, *ADAMW, steps=20, flags=("--shard", "--resume"))
    train_one(lines, "transformer", run, *ADAMW, steps=30, resume=True)
    pair.train(lines, "transformer", run, *ADAMW, steps=40, flags=("--shard", "--resume"))
    pair.train(lines, "transformer", run, *ADAMW, "train.shard=false", steps=50, flags=("--resume",))
    np.testing.assert_allclose(curve(run), curve(tmp_path / "straight"), atol=1e-4)
    assert check_run(run) == []


def test_no_file_of_a_sharded_state_has_all_weights(pair: Pair, lines: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pair.train(lines, "transformer", run, *ADAMW, steps=10, flags=("--shard",))
    newest = RunDir(run).states.folders()[0]
    shards = [load_file(newest / f"shard-{rank}.safetensors") for rank in range(2)]
    rest = load_file(newest / "tensors.safetensors")
    sizes = [sum(tensor.nbytes for tensor in tensors.values()) for tensors in (*shards, rest)]
    weights = sum(tensor.nbytes for tensor in load_file(run / "model.safetensors").values())
    assert sizes[0] + sizes[1] == 5 * weights, "weights, two moments, EMA, best weights"
    assert abs(sizes[0] - sizes[1]) < 0.2 * weights
    assert sizes[2] < 0.5 * weights


def test_damaged_shard_is_named_and_the_previous_state_resumed(
    pair: Pair, lines: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for steps, flags in ((10, ()), (20, ("--resume",))):
        pair.train(lines, "transformer", run, *ADAMW, steps=steps, flags=("--shard", *flags))
    shard = RunDir(run).states.folders()[0] / "shard-1.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    assert check_run(run)[0] == f"{shard} is damaged: its checksum doesn't match"
    output = pair.train(lines, "transformer", run, *ADAMW, steps=30, flags=("--shard", "--resume"))
    assert f"{shard} is damaged: its checksum doesn't match; falling back to the previous state" in output
    assert curve(run, "step")[-1] == 30
    assert check_run(run) == []


DIVERGES_AT_STEP_15 = """
from unittest import mock
from makemore.cli import run
from makemore.training.learners.guard import FiniteGuard, NonFiniteError
watch, steps = FiniteGuard.watch, []
def diverging(self, loss, norm):
    steps.append(int(self._now))
    if steps.count(15) == 1 and steps[-1] == 15:
        raise NonFiniteError(15, float("nan"), 1.0)
    watch(self, loss, norm)
with mock.patch.object(FiniteGuard, "watch", diverging):
    assert run({arguments!r}) == 0
"""


@pytest.mark.parametrize("shard", ["false", "true"])
def test_every_rank_rolls_back(pair: Pair, lines: Path, tmp_path: Path, shard: str) -> None:
    settings = (*ADAMW, f"train.shard={shard}", "train.on_divergence=rollback", "train.save_interval=0")
    command = arguments(lines, "transformer", tmp_path / "run", *settings, steps=20)
    output = pair.run(["-c", DIVERGES_AT_STEP_15.format(arguments=command)])
    assert output.count("learning rate scaled by 0.5") == 1, output
    assert check_run(tmp_path / "run") == []


@pytest.mark.parametrize(("model", "batch_tokens"), [("wavenet", 2), ("lstm", 64)])
def test_batch_of_a_single_row(
    pair: Pair, lines: Path, tmp_path: Path, model: str, batch_tokens: int
) -> None:
    """A batch of one row leaves no rows for the second process."""
    settings = (f"train.batch_tokens={batch_tokens}", "train.optimizer=adamw")
    pair.train(lines, model, tmp_path / "two", *settings, steps=5)
    pair.train(lines, model, tmp_path / "two", *settings, steps=10, flags=("--resume",))
    train_one(lines, model, tmp_path / "one", *settings, steps=10)
    np.testing.assert_allclose(curve(tmp_path / "two")[-1], curve(tmp_path / "one")[-1], atol=1e-4)


def test_signal_saves_a_valid_state(lines: Path, tmp_path: Path) -> None:
    process = start(
        [str(ROOT / "train.py"), *arguments(lines, "transformer", tmp_path / "run", steps=10**6)[1:]],
        torchrun=TORCHRUN,
    )
    wait_for(tmp_path, "run/metrics.jsonl", process)
    process.send_signal(signal.SIGINT)
    output = finish(process)
    assert output.count("stopped; add --resume") == 1, output
    saved = RunDir(tmp_path / "run").states.read_newest(RunDir(tmp_path / "run").read_config().run_id)
    assert saved.state["trainer"]["step"] > 0
    assert not saved.problems


KILLS_RANK_1 = """
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


@pytest.mark.parametrize(("model", "settings"), [("lstm", ()), ("transformer", (*ADAMW, "train.shard=true"))])
def test_torchrun_restarts_from_the_last_state(
    lines: Path, tmp_path: Path, model: str, settings: tuple[str, ...]
) -> None:
    (tmp_path / "failing.py").write_text(KILLS_RANK_1, encoding="utf-8")
    run = arguments(lines, model, tmp_path / "run", *settings, "train.save_interval=0", steps=40)
    process = start([str(tmp_path / "failing.py"), *run], "--max-restarts=1", "--monitor-interval=0.1")
    output = finish(process)
    assert process.returncode == 0, output
    assert output.count("makemore: lost connection to the other ranks") == 1, output
    assert "Traceback" not in output, output
    assert output.count(f"resuming {model} at step") == 1, output
    steps = curve(tmp_path / "run", "step")
    assert steps[-1] == 40
    assert steps == sorted(steps)


def test_counting_restarts_from_the_last_state(lines: Path, tmp_path: Path) -> None:
    small = "train.batch_tokens=20"  # many steps, so that the kill comes in the middle
    train_one(lines, "count", tmp_path / "straight", small, steps=200)
    (tmp_path / "failing.py").write_text(KILLS_RANK_1, encoding="utf-8")
    run = arguments(lines, "count", tmp_path / "run", small, "train.save_interval=0", steps=200)
    process = start([str(tmp_path / "failing.py"), *run], "--max-restarts=1", "--monitor-interval=0.1")
    output = finish(process)
    assert process.returncode == 0, output
    assert output.count("resuming count at step") == 1, output
    scores = [RunDir(tmp_path / name).read_result().val.nll for name in ("straight", "run")]
    assert scores[1] == pytest.approx(scores[0], abs=1e-9)


@pytest.mark.parametrize(("launch", "resume"), [("this", True), ("another", False)])
def test_restart_resumes_only_a_run_of_the_same_launch(
    lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launch: str, resume: bool
) -> None:
    monkeypatch.setattr(distributed, "_dist_info", distributed.DistInfo(0, 2, 0))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "this")
    environment = Environment(
        precision="float32",
        compiled=False,
        native=False,
        device="cpu",
        threads=1,
        processes=2,
        machine="",
        launch=launch,
    )
    RunDir(tmp_path / "run").create(CONFIG.model_copy(update={"environment": environment}), {}, {})
    request = TrainRequest(input=str(lines), out=tmp_path / "run")
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    assert not _resumes_after_restart(request), "the first attempt"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert _resumes_after_restart(request) is resume


def test_ranks_join_in_a_store_used_by_an_earlier_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier attempts of torchrun leave keys in the store."""
    monkeypatch.setattr(distributed, "_earlier_attempt", False)
    store = torch.distributed.HashStore()
    for attempt in ("first", "second"):
        infos = [distributed.DistInfo(rank, 3) for rank in (1, 2, 0)]
        with ThreadPoolExecutor() as pool:
            joined = pool.map(lambda info: distributed._join_attempt(store, info, lambda: False), infos)
        names = set(joined)
        assert len(names) == 1
        assert distributed.was_restarted() == (attempt == "second")
        assert store.get(distributed.ATTEMPT_KEY).decode() in names


def test_waiting_for_other_ranks_can_be_interrupted() -> None:
    for rank in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            distributed._join_attempt(
                torch.distributed.HashStore(), distributed.DistInfo(rank, 2), lambda: True
            )


@pytest.mark.parametrize("rank", [0, 1])
def test_missing_rank_is_reported(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    monkeypatch.setattr(distributed, "JOIN_TIMEOUT", 0.1)
    with pytest.raises(UserError, match="did not join"):
        distributed._join_attempt(torch.distributed.HashStore(), distributed.DistInfo(rank, 2), lambda: False)


FAILS_ON_RANK_1 = """
from makemore.runtime import distributed
from makemore.cli import _fail
from makemore.errors import UserError
try:
    with distributed.process_group():
        assert distributed.all_reduce_max(distributed.rank()) == 1
        assert distributed.broadcast(distributed.rank()) == 0
        assert distributed.gather(distributed.rank()) == ([0, 1] if distributed.is_main() else [])
        if not distributed.is_main():
            raise UserError("the disk is full")
        distributed.broadcast("never sent")
        raise AssertionError
except UserError as error:
    assert _fail(str(error)) == 2
"""


OUT_OF_MEMORY_ON_RANK_1 = """
import gc
from unittest import mock
from makemore.cli import run
from makemore.models.transformer import Transformer
from makemore.runtime import distributed
forward = Transformer.forward
def failing(*args):
    if distributed.rank() == 1:
        raise MemoryError
    return forward(*args)
with mock.patch.object(Transformer, "forward", failing):
    assert run({arguments!r}) == 2
gc.collect()  # closes the connections, as exiting does
"""


def test_error_on_one_rank_ends_the_gradient_exchange(pair: Pair, lines: Path, tmp_path: Path) -> None:
    command = arguments(lines, "transformer", tmp_path / "run")
    output = pair.run(["-c", OUT_OF_MEMORY_ON_RANK_1.format(arguments=command)])
    assert output.count("makemore: out of memory on cpu at step 0") == 1, output


FAILS_TO_COMPILE_ON_RANK_1 = """
from unittest import mock
import torch
from makemore.cli import run
from makemore.runtime import distributed
def compiled(function, options=None):
    def failing(*args, **options):
        raise RuntimeError("no compiler")
    return failing if distributed.rank() == 1 else function
with mock.patch.object(torch, "compile", compiled):
    assert run({arguments!r}) == 0
"""


def test_compilation_may_fail_on_one_rank(pair: Pair, lines: Path, tmp_path: Path) -> None:
    train_one(lines, "transformer", tmp_path / "one", "train.grad_accum_steps=2", steps=20)
    settings = ("train.grad_accum_steps=2", "train.compile=yes")
    command = arguments(lines, "transformer", tmp_path / "two", *settings, steps=20)
    pair.run(["-c", FAILS_TO_COMPILE_ON_RANK_1.format(arguments=command)])
    np.testing.assert_allclose(curve(tmp_path / "two"), curve(tmp_path / "one"), atol=1e-4)


def test_error_on_one_rank_is_printed_once(pair: Pair) -> None:
    output = pair.run(["-c", FAILS_ON_RANK_1])
    assert output.count("makemore: the disk is full") == 1, output


@pytest.mark.parametrize(("rows", "size"), [(7, 3), (2, 4), (0, 2), (12, 4)])
def test_rank_slice_matches_array_split(monkeypatch: pytest.MonkeyPatch, rows: int, size: int) -> None:
    for rank, expected in enumerate(np.array_split(np.arange(rows), size)):
        monkeypatch.setattr(distributed, "_dist_info", distributed.DistInfo(rank, size))
        np.testing.assert_array_equal(np.arange(rows)[distributed.rank_slice(rows)], expected)


def test_single_process_needs_no_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    # Batch systems may set WORLD_SIZE without torchrun.
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert distributed.dist_info_from_env() == distributed.DistInfo(0, 1, 0)
    with contextlib.ExitStack() as stack:
        stack.enter_context(distributed.process_group())
        assert (distributed.all_reduce_max(3.5), distributed.broadcast("x"), distributed.gather(1)) == (
            3.5,
            "x",
            [1],
        )
        assert distributed.rank_slice(5) == slice(0, 5)
