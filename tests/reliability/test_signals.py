"""SIGTERM and Ctrl-C at any time: exit 143 or 130, soon, and the run goes on from where it was."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from makemore.cli import signals
from makemore.runs.directory import RunDir
from makemore.runs.verification import check_run
from makemore.training import assembly
from makemore.training import train as training
from makemore.training.learners import gradient as learners
from tests.cli.conftest import call, words
from tests.reliability.test_environment import BEGIN
from tests.reliability.test_resuming import same, state_of

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
PHASES: dict[str, tuple[Any, str]] = {
    "a step": (learners.GradientLearner, "step"),
    "an evaluation": (assembly, "quick_loss"),
    "compilation": (learners.AutogradLearner, "_eager_loss"),
    "saving": (RunDir, "write_state"),
    "saving the best": (RunDir, "write_model"),
    "scoring": (training, "score"),
    "sampling": (training, "sample"),
}
"""Where the signal comes, and what is slow there."""


@pytest.fixture
def text(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signals, "GRACE", 0.2)
    (tmp_path / "words.txt").write_text(words(60), encoding="utf-8")
    return tmp_path / "words.txt"


def at(monkeypatch, phase: str, nth: int, then: Callable[[], None]) -> None:
    """Do something when a phase begins for the nth time."""
    owner, name = PHASES[phase]
    original, calls = getattr(owner, name), iter(range(1, 10**6))

    def disturbed(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == nth:
            then()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, disturbed)


def send(signum: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), signum)


def slowly(signum: int) -> Callable[[], None]:
    """A signal comes to something that takes minutes and asks nobody."""

    def wait() -> None:
        os.kill(os.getpid(), signum)
        time.sleep(60)

    return wait


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("kind", [send, slowly])
@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_during(text, tmp_path, monkeypatch, phase, kind, signum, status):
    nth = 1 if phase in ("scoring", "sampling") else 3
    if kind is send:  # what goes on by itself is asked to stop, and not interrupted, on a busy machine either
        monkeypatch.setattr(signals, "GRACE", 10.0)
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        at(patch, phase, nth, kind(signum))
        begun = time.monotonic()
        result = call("train", text, "--out", "run", *BEGIN)
        assert time.monotonic() - begun < 30
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    ended = phase == "sampling" and kind is send  # too late to stop anything
    assert result.status == (0 if ended else status), result
    assert "Traceback" not in result.err
    assert ended or result.err.splitlines()[-1].startswith("makemore: stopped"), result.err
    assert call("train", text, "--out", "run", "--resume").status == 0
    assert call("train", text, "--out", "whole", *BEGIN).status == 0
    assert same(state_of(tmp_path / "run"), state_of(tmp_path / "whole"))
    assert check_run(tmp_path / "run") == []


def test_an_interrupt_that_is_lost_comes_again(text, tmp_path, monkeypatch):
    """As one is that falls into a callback of the garbage collector."""
    monkeypatch.setattr(signals, "RETRY", 1.0)

    def lose() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(60)
        time.sleep(60)

    at(monkeypatch, "an evaluation", 2, lose)
    begun = time.monotonic()
    assert call("train", text, "--out", "run", *BEGIN).status == 130
    assert time.monotonic() - begun < 30
    assert check_run(tmp_path / "run") == []


def test_a_second_ctrl_c_stops_at_once(text, tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "GRACE", 60.0)

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        threading.Timer(0.1, send(signal.SIGINT)).start()
        time.sleep(60)

    at(monkeypatch, "an evaluation", 2, twice)
    begun = time.monotonic()
    result = call("train", text, "--out", "run", *BEGIN)
    assert result.status == 130
    assert "makemore: stopped at once" in result.err
    assert time.monotonic() - begun < 30
    assert RunDir(tmp_path / "run").read_state(RunDir(tmp_path / "run").read_config()["run_id"])


def test_a_terminal_that_is_gone(text, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        at(monkeypatch, "a step", 3, send(signal.SIGHUP))
        result = call("train", text, "--out", "run", *BEGIN)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert result.status == 129
    assert "add --resume" in result.err


def test_nohup_is_heeded(text, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        at(monkeypatch, "a step", 3, send(signal.SIGHUP))
        assert call("train", text, "--out", "run", *BEGIN).status == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_while_sampling(text, monkeypatch):
    assert call("train", text, "-m", "count", "--out", "run").status == 0
    monkeypatch.setattr("makemore.runs.run.load", lambda *args: slowly(signal.SIGINT)())
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by a shell's background jobs
    try:
        result = call("sample", "run")
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.status == 130
    assert result.err in ("", "makemore: stopped\n")  # as typer's version has it
