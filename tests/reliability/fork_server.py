"""A process that has imported everything and runs command lines in forks of itself, so that hundreds can
be killed without waiting for as many imports.

    python -m tests.reliability.fork_server

reads a job a line from stdin (the fields of ``Job`` as JSON) and answers each with a line.
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
CALLS = ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir")
"""What changes a folder or waits for the disk; writes are counted beside them."""


@dataclass(frozen=True)
class Job:
    """A command line and how it is to die: at the nth call that touches the disk, after a delay, or not."""

    arguments: list[str]
    folder: str
    """Where it runs, and where ``log`` and ``promised`` go."""
    at_call: int | None = None
    after: float | None = None
    """Seconds."""


class Outcome(NamedTuple):
    """How a job ended: an exit status, or minus a signal."""

    status: int
    seconds: float
    err: str
    calls: int
    """That touched the disk; 0 if it was killed."""


class Faults:
    """Counts calls that touch the disk and kills the process before one of them, or within a write."""

    def __init__(self, at_call: int | None) -> None:
        self.at_call, self.calls = at_call, 0
        for name in CALLS:
            setattr(os, name, self._counted(getattr(os, name)))
        opened = io.open
        io.open = lambda *args, **kwargs: Torn(opened(*args, **kwargs), self)  # type: ignore[assignment]

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if self.due():
                die()
            return call(*args, **kwargs)

        return counted

    def due(self) -> bool:
        self.calls += 1
        return self.calls == self.at_call


class Torn:
    """A file whose writes may end half-way."""

    def __init__(self, file: Any, faults: Faults) -> None:
        self._file, self._faults = file, faults

    def write(self, data: Any) -> int:
        if self._faults.due():
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            die()
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Torn:
        return self

    def __exit__(self, *args: object) -> None:
        self._file.close()

    def __iter__(self) -> Any:
        return iter(self._file)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def promising(path: Path) -> None:
    """Note each state's step once ``write_state`` has returned: from then on it is promised."""
    from makemore.runs.directory import RunDir

    write_state = RunDir.write_state
    promised = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def noted(self: RunDir, step: int, state: dict[str, Any], run_id: str) -> None:
        write_state(self, step, state, run_id)
        os.write(promised, f"{step}\n".encode())

    RunDir.write_state = noted  # type: ignore[method-assign]


def child(job: Job) -> None:
    """In the fork: run the command line, never to return."""
    from makemore.cli import run

    folder = Path(job.folder)
    os.chdir(folder)
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # After a fork both write to new files, unbuffered: what was said is there after a kill.
    sys.stdout = sys.stderr = io.TextIOWrapper(os.fdopen(1, "wb", 0), write_through=True)
    promising(folder / "promised")
    status, faults = 1, Faults(job.at_call)
    try:
        status = run(job.arguments)
        Path("calls").write_bytes(str(faults.calls).encode())
    finally:
        os._exit(status)


def warm_up() -> None:
    """Train once, which imports all that training needs."""
    import torch

    from makemore.cli import run

    torch.set_num_threads(1)
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        run(["train", "--steps", "2", "--out", f"{folder}/run", "--no-compile"])


def serve() -> None:
    """Answer jobs until stdin ends."""
    warm_up()
    for line in sys.stdin:
        job = Job(**json.loads(line))
        begun = time.monotonic()
        pid = os.fork()
        if not pid:
            child(job)
        if job.after is not None:
            time.sleep(job.after)
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        answer = {"status": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - begun}
        print(json.dumps(answer), flush=True)


class Nursery:
    """The process above, as a context."""

    def __enter__(self) -> Nursery:
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
        """Run a job to its end, whichever that is."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        folder = Path(job.folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "calls").unlink(missing_ok=True)
        (folder / "log").write_text("")  # a child may be killed before it opens it
        self.process.stdin.write(json.dumps(dataclasses.asdict(job)) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        calls = int((folder / "calls").read_text()) if (folder / "calls").exists() else 0
        return Outcome(answer["status"], answer["seconds"], (folder / "log").read_text(), calls)


if __name__ == "__main__":
    serve()
