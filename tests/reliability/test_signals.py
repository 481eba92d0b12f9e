"""SIGTERM and Ctrl-C at any time: exit status 143 or 130, and the run can be resumed."""

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
from makemore.training import assembly, fitting
from makemore.training import train as training
from makemore.training.learners.autograd import AutogradLearner
from makemore.training.learners.gradient import GradientLearner
from tests.cli.conftest import call, words
from tests.reliability.test_environment import FLAGS
from tests.reliability.test_resuming import same, state_of

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")]
PHASES: dict[str, tuple[Any, str]] = {
    "a step": (GradientLearner, "step"),
    "an evaluation": (assembly, "estimate_loss"),
    "compilation": (AutogradLearner, "_eager_loss"),
    "saving": (RunDir, "write_state"),
    "saving the best": (RunDir, "write_model"),
    "scoring": (training, "score_own"),
    "sampling": (fitting, "sample"),
}
"""Phases in which a signal arrives, and the function that each of them calls."""


@pytest.fixture
def text(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signals, "GRACE", 0.2)
    (tmp_path / "words.txt").write_text(words(60), encoding="utf-8")
    return tmp_path / "words.txt"


def on_phase(monkeypatch, phase: str, nth: int, action: Callable[[], None]) -> None:
    """Run an action when a phase starts for the nth time."""
    owner, name = PHASES[phase]
    original, calls = getattr(owner, name), iter(range(1, 10**6))

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == nth:
            action()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, interrupted)


def block() -> None:
    """Wait for an interrupt; fail if none comes."""
    time.sleep(60)
    raise AssertionError("nothing interrupted the wait")


def send(signum: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), signum)


def send_and_block(signum: int) -> Callable[[], None]:
    """Send a signal, then block without polling for stop requests."""

    def wait() -> None:
        os.kill(os.getpid(), signum)
        block()

    return wait


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("kind", [send, send_and_block])
@pytest.mark.parametrize("phase", PHASES)
def test_signal_stops_a_run_that_can_be_resumed(text, tmp_path, monkeypatch, phase, kind, signum, status):
    nth = 1 if phase in ("scoring", "sampling") else 3
    if kind is send:  # code that polls must not be interrupted, even on a busy machine
        monkeypatch.setattr(signals, "GRACE", 10.0)
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        on_phase(patch, phase, nth, kind(signum))
        result = call("train", text, "--out", "run", *FLAGS)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    finished = phase == "sampling" and kind is send  # too late to stop anything
    assert result.status == (0 if finished else status), result
    assert "Traceback" not in result.err
    assert finished or result.err.splitlines()[-1].startswith("makemore: stopped"), result.err
    assert call("train", text, "--out", "run", "--resume").status == 0
    assert call("train", text, "--out", "full", *FLAGS).status == 0
    assert same(state_of(tmp_path / "run"), state_of(tmp_path / "full"))
    assert check_run(tmp_path / "run") == []


def test_lost_interrupt_is_sent_again(text, tmp_path, monkeypatch):
    """Python swallows an interrupt in a callback of the garbage collector."""
    monkeypatch.setattr(signals, "RETRY", 1.0)

    def swallow() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(60)
        block()

    on_phase(monkeypatch, "an evaluation", 2, swallow)
    assert call("train", text, "--out", "run", *FLAGS).status == 130
    assert check_run(tmp_path / "run") == []


def test_a_second_ctrl_c_stops_at_once(text, tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "GRACE", 60.0)

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        threading.Timer(0.1, send(signal.SIGINT)).start()
        block()

    on_phase(monkeypatch, "an evaluation", 2, twice)
    result = call("train", text, "--out", "run", *FLAGS)
    assert result.status == 130
    assert "makemore: stopped at once" in result.err
    assert RunDir(tmp_path / "run").states.read_newest(RunDir(tmp_path / "run").read_config().run_id)


def test_closed_terminal_stops_the_run(text, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        on_phase(monkeypatch, "a step", 3, send(signal.SIGHUP))
        result = call("train", text, "--out", "run", *FLAGS)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert result.status == 129
    assert "add --resume" in result.err


def test_nohup_is_respected(text, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        on_phase(monkeypatch, "a step", 3, send(signal.SIGHUP))
        assert call("train", text, "--out", "run", *FLAGS).status == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_while_sampling(text, monkeypatch):
    assert call("train", text, "-m", "count", "--out", "run").status == 0
    monkeypatch.setattr("makemore.runs.run.load", lambda *args: send_and_block(signal.SIGINT)())
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by a shell's background jobs
    try:
        result = call("sample", "run")
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.status == 130
    assert result.err in ("", "makemore: stopped\n")  # it depends on typer's version
