"""Fork server: imports everything once and runs command lines in forks, which makes hundreds of kills fast.

    python -m tests.reliability.fork_server

reads one job per line from stdin (the fields of ``Job`` as JSON) and prints one line of JSON for each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
DISK_CALLS = ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir")
"""Functions of ``os`` that change a folder or wait for the disk; writes are counted too."""


@dataclass(frozen=True)
class Job:
    """A command line and when to kill it: at the nth disk call, after a delay, or never."""

    arguments: list[str]
    folder: str
    """Working folder, which also receives ``log`` and ``saved_steps``."""
    kill_at_call: int | None = None
    kill_after: float | None = None
    """Seconds until the kill."""


class Outcome(NamedTuple):
    """Result of a job; ``status`` is the exit status, or minus the number of the signal that killed it."""

    status: int
    seconds: float
    err: str
    calls: int
    """Number of disk calls; 0 if the job was killed."""


class FaultInjector:
    """Counts disk calls and kills the process before one of them, or in the middle of a write."""

    def __init__(self, kill_at_call: int | None) -> None:
        self.kill_at_call, self.calls = kill_at_call, 0
        for name in DISK_CALLS:
            setattr(os, name, self._counted(getattr(os, name)))
        original_open = io.open
        io.open = lambda *args, **kwargs: TornFile(original_open(*args, **kwargs), self)  # type: ignore[assignment]

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted_call(*args: Any, **kwargs: Any) -> Any:
            if self.count():
                kill_self()
            return call(*args, **kwargs)

        return counted_call

    def count(self) -> bool:
        self.calls += 1
        return self.calls == self.kill_at_call


class TornFile:
    """File whose writes can be cut off half-way."""

    def __init__(self, file: Any, faults: FaultInjector) -> None:
        self._file, self._faults = file, faults

    def write(self, data: Any) -> int:
        if self._faults.count():
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            kill_self()
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> TornFile:
        return self

    def __exit__(self, *args: object) -> None:
        self._file.close()

    def __iter__(self) -> Any:
        return iter(self._file)


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def record_saved_steps(path: Path) -> None:
    """Append a state's step to a file once ``write_state`` has returned; no step may be lost after that."""
    from makemore.runs.directory import RunDir

    write_state = RunDir.write_state
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write_and_record(self: RunDir, step: int, state: dict[str, Any], run_id: str) -> None:
        write_state(self, step, state, run_id)
        os.write(handle, f"{step}\n".encode())

    RunDir.write_state = write_and_record  # type: ignore[method-assign]


def run_job(job: Job) -> None:
    """Run the command line in the fork; never returns."""
    from makemore.cli import run

    folder = Path(job.folder)
    os.chdir(folder)
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # Unbuffered, to keep the output written before a kill.
    sys.stdout = sys.stderr = io.TextIOWrapper(os.fdopen(1, "wb", 0), write_through=True)
    record_saved_steps(folder / "saved_steps")
    status, faults = 1, FaultInjector(job.kill_at_call)
    try:
        status = run(job.arguments)
        Path("calls").write_bytes(str(faults.calls).encode())
    finally:
        os._exit(status)


def warm_up() -> None:
    """Train once to import everything that training needs."""
    import torch

    from makemore.cli import run

    torch.set_num_threads(1)
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w") as devnull,
        contextlib.redirect_stdout(devnull),
        contextlib.redirect_stderr(devnull),
    ):
        run(["train", "-m", "transformer", "--steps", "2", "--out", f"{folder}/run", "--no-compile"])


def serve() -> None:
    """Answer jobs until stdin ends."""
    warm_up()
    for line in sys.stdin:
        job = Job(**json.loads(line))
        start = time.monotonic()
        pid = os.fork()
        if not pid:
            run_job(job)
        if job.kill_after is not None:
            time.sleep(job.kill_after)
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        answer = {"status": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - start}
        print(json.dumps(answer), flush=True)


class ForkServer:
    """Context manager that runs this module as a server process."""

    def __enter__(self) -> ForkServer:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.reliability.fork_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        return self

    def __exit__(self, *args: object) -> None:
        self.process.communicate()

    def run(self, job: Job) -> Outcome:
        """Run a job until it exits or is killed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        folder = Path(job.folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "calls").unlink(missing_ok=True)
        (folder / "log").write_text("")  # the child may be killed before it opens the log
        self.process.stdin.write(json.dumps(dataclasses.asdict(job)) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        calls = int((folder / "calls").read_text()) if (folder / "calls").exists() else 0
        return Outcome(answer["status"], answer["seconds"], (folder / "log").read_text(), calls)


if __name__ == "__main__":
    serve()
