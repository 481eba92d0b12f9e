"""Train many runs on one text, each in a separate process.

Runs then share no memory or compiled code, each has its own peak memory, and a kill affects only one run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from makemore.errors import UserError
from makemore.models import MODELS
from makemore.registry import Registry
from makemore.runs.directory import RunDir
from makemore.runs.run import load
from makemore.runs.schema import RunRecord
from makemore.tokenizers import TOKENIZERS
from makemore.training.learners import speed
from makemore.training.observers import MultiObserver, Observer
from makemore.training.optimizers import OPTIMIZERS
from makemore.training.records import TrainingInterrupted, TrainRecord
from makemore.training.request import TrainRequest
from makemore.training.train import train

ObserverFactory = Callable[[str], Observer]
"""Makes the observer of the named run; pickled, and called in the run's process."""
POLL_SECONDS = 0.1
REGISTRIES: tuple[Registry[Any], ...] = (MODELS, TOKENIZERS, OPTIMIZERS)
"""Registries that a training request names entries of; a new process gets what was added to them."""


@dataclass(frozen=True)
class Failure:
    """A failed run and the reason."""

    name: str
    reason: str


def train_grid(
    requests: Iterable[TrainRequest], observe: ObserverFactory, stop: Callable[[], bool]
) -> tuple[list[Path], list[Failure]]:
    """Train every run of a grid; unless they are to be overwritten, finished runs are reused and interrupted
    runs are resumed.

    Returns the folders of successful runs, and the failures. Raises UserError, before any training, if an
    existing run differs from its request, and TrainingInterrupted when stopped, with all progress saved.
    """
    plans = [_plan(request) for request in requests]
    folders, failures = [], []
    for request, finished in plans:
        assert request.out is not None
        try:
            if not finished:
                train_in_subprocess(request, observe, stop)
            folders.append(request.out)
        except UserError as error:
            failures.append(Failure(request.out.name, str(error)))
    return folders, failures


def _plan(cell: TrainRequest) -> tuple[TrainRequest, bool]:
    """Return the request, adapted to the run on disk, and whether that run is finished."""
    assert cell.out is not None
    folder = RunDir(cell.out)
    if cell.overwrite or not folder.exists:
        return cell, False
    check_settings(cell, folder.read_config())
    if folder.read_result() is not None:
        _check_text(cell.out)
        return cell, True
    return dataclasses.replace(cell, resume=True), False


def check_settings(cell: TrainRequest, config: RunRecord) -> None:
    """Raise UserError if the existing run has other settings."""
    saved, requested = config.train, cell.requested.train
    settings = {
        "model": (config.model.name, cell.model),
        "tokenizer": (config.tokenizer, cell.tokenizer),
        "seed": (saved.seed, requested.seed),
        "steps": (saved.steps, requested.steps),
        "max_time": (saved.max_time, requested.max_time),
        "text": (config.text.paths[0], str(Path(str(cell.input)).absolute())),
    }
    for name, (old, new) in settings.items():
        if old != new:
            raise UserError(
                f"{cell.out} was trained with {name} {_or_unset(old)}, not {_or_unset(new)}; "
                "choose another --out or retrain all runs with --overwrite"
            )


def _or_unset(value: object) -> str:
    return "unset" if value is None else str(value)


def _check_text(folder: Path) -> None:
    try:
        load(folder, "cpu").documents()
    except UserError as error:
        problem = str(error).partition(";")[0]
        raise UserError(f"{problem}; choose another --out or retrain all runs with --overwrite") from None


def train_in_subprocess(
    request: TrainRequest, observe: ObserverFactory, stop: Callable[[], bool], until: float | None = None
) -> None:
    """Train in a separate process; if ``until`` is given, stop after this training time, in seconds, to be
    resumed later. Raises UserError like ``train``, and TrainingInterrupted when stopped."""
    context = multiprocessing.get_context("spawn")
    stop_event = context.Event()
    receiver, sender = context.Pipe(duplex=False)
    entries = [dict(registry.items()) for registry in REGISTRIES]
    arguments = (request, observe, until, entries, dict(speed.measured_speeds), stop_event, sender)
    process = context.Process(target=_run_child, args=arguments)
    process.start()
    sender.close()
    try:
        while process.is_alive() and not receiver.poll(POLL_SECONDS):
            if stop():
                stop_event.set()
        outcome, reason, speeds = _receive_outcome(receiver)
        speed.measured_speeds.update(speeds)
        process.join()
    finally:
        if process.is_alive():
            process.kill()
            process.join()
    assert request.out is not None
    if outcome == "stopped":
        raise TrainingInterrupted(request.out)
    if outcome != "done":
        raise UserError(reason or _exit_reason(process.exitcode))


def _receive_outcome(receiver: Connection) -> tuple[str, str, dict[str, float]]:
    """What happened, why, and the training speeds that the process knows."""
    try:
        return receiver.recv()
    except EOFError:
        return "died", "", {}


def _exit_reason(exitcode: int | None) -> str:
    if exitcode == -getattr(signal, "SIGKILL", 9):
        return "its process was killed, probably because memory ran out"
    return f"its process exited with status {exitcode}; run makemore train to see why"


class _Timer(Observer):
    """Notes when a training has taken a given time."""

    def __init__(self, until: float | None) -> None:
        self.until, self.is_over = until, False

    def record(self, record: TrainRecord) -> None:
        self.is_over = self.until is not None and record.elapsed >= self.until


def _run_child(
    request: TrainRequest,
    observe: ObserverFactory,
    until: float | None,
    entries: list[dict[str, str]],
    speeds: dict[str, float],
    stop_event: Event,
    sender: Connection,
) -> None:
    """Train in the child process, until done, told to stop by the parent, or orphaned."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    for registry, added in zip(REGISTRIES, entries, strict=True):
        for name, path in added.items():
            registry.register(name, path)
    speed.measured_speeds.update(speeds)
    parent = multiprocessing.parent_process()
    assert request.out is not None
    assert parent is not None
    timer = _Timer(until)
    observer = MultiObserver(observe(request.out.name), timer)
    try:
        train(request, observer, lambda: timer.is_over or stop_event.is_set() or not parent.is_alive())
        outcome = ("done", "")
    except TrainingInterrupted:
        outcome = ("done", "") if timer.is_over else ("stopped", "")
    except UserError as error:
        outcome = ("failed", str(error))
    finally:
        observer.close()
    with contextlib.suppress(BrokenPipeError):  # the parent was killed
        sender.send((*outcome, speed.measured_speeds))
