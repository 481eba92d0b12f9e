"""Many runs on one text, each in a process of its own, as ``makemore train`` makes them.

What one run leaves in memory, or has compiled, is then no other's, its peak of memory is its own, and one
that is killed takes no other along.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from makemore.errors import UserError
from makemore.models import MODELS
from makemore.runs.directory import RunDir
from makemore.runs.run import load, saved_paths
from makemore.training.observers import Observer
from makemore.training.planning import TrainRequest
from makemore.training.train import Interrupted, train

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event

Observe = Callable[[str], Observer]
"""Makes who watches the run of this name; called in the run's own process, to which it is pickled."""
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Grid:
    """Every model with every tokenizer and seed, on one text and within one budget."""

    path: Path
    models: tuple[str, ...]
    tokenizers: tuple[str, ...]
    seeds: int
    out: Path
    """Folder of the runs."""
    steps: int | None = None
    max_time: float | None = None
    device: str = "auto"
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise UserError(f"--seeds {self.seeds}: must be 1 or more")
        if self.steps is not None and self.steps < 1:
            raise UserError(f"--steps {self.steps}: must be 1 or more")


@dataclass(frozen=True)
class Failure:
    """A run that came to nothing, and why."""

    name: str
    reason: str


def cells(grid: Grid) -> list[TrainRequest]:
    """A request for each run; seeds come last, so that every rung has one run before any has two."""
    budget = {"steps": grid.steps, "max_time": grid.max_time}
    return [
        TrainRequest(
            str(grid.path),
            model,
            tokenizer,
            grid.out / f"{model}-{tokenizer.replace(':', '-')}-{seed}",
            {**{k: v for k, v in budget.items() if v is not None}, "seed": seed, "device": grid.device},
        )
        for seed in range(grid.seeds)
        for model in grid.models
        for tokenizer in grid.tokenizers
    ]


def train_grid(
    grid: Grid, observe: Observe, stop: Callable[[], bool] = lambda: False
) -> tuple[list[Path], list[Failure]]:
    """Folders of all runs: those that are there are kept, those cut short resumed, the others trained.

    A run that fails is passed over. Raises UserError before any training where a run that is there isn't
    what is asked for, and Interrupted, with all that was trained kept, when stopped.
    """
    plans = [_plan(cell, grid) for cell in cells(grid)]
    folders, failures = [], []
    for request, finished in plans:
        assert request.out is not None
        try:
            if not finished:
                train_apart(request, observe, stop)
            folders.append(request.out)
        except UserError as error:
            failures.append(Failure(request.out.name, str(error)))
    return folders, failures


def _plan(cell: TrainRequest, grid: Grid) -> tuple[TrainRequest, bool]:
    """The request as it has to be made now, and whether it was carried out before."""
    assert cell.out is not None
    folder = RunDir(cell.out)
    if grid.overwrite or not folder.exists:
        return dataclasses.replace(cell, overwrite=grid.overwrite), False
    _check(cell, folder.read_config())
    if folder.read_result() is not None:
        _check_text(cell.out)
        return cell, True
    return dataclasses.replace(cell, resume=True), False


def _check(cell: TrainRequest, config: dict[str, Any]) -> None:
    """Raises UserError where the run that is there was asked for something else."""
    saved = config["train"]
    facts = {
        "model": (config["model"]["name"], cell.model),
        "tokenizer": (config["tokenizer"], cell.tokenizer),
        "seed": (saved["seed"], cell.train["seed"]),
        "steps": (saved["steps"], cell.train.get("steps")),
        "max_time": (saved["max_time"], cell.train.get("max_time")),
        "text": (saved_paths(config)[0], str(Path(str(cell.input)).absolute())),
    }
    for name, (was, asked) in facts.items():
        if was != asked:
            raise UserError(
                f"{cell.out} was made with {name} {was}, not {asked}; name another --out, "
                "or --overwrite to train all anew"
            )


def _check_text(folder: Path) -> None:
    try:
        load(folder, "cpu").documents()
    except UserError as error:
        fact = str(error).partition(";")[0]
        raise UserError(f"{fact}; name another --out, or --overwrite to train all anew") from None


def train_apart(request: TrainRequest, observe: Observe, stop: Callable[[], bool]) -> None:
    """Train in a process of its own. Raises UserError as training does, and Interrupted when stopped."""
    context = multiprocessing.get_context("spawn")
    stopping = context.Event()
    receiver, sender = context.Pipe(duplex=False)
    rungs = {name: MODELS.path(name) for name in MODELS}
    process = context.Process(target=_child, args=(request, observe, rungs, stopping, sender))
    process.start()
    sender.close()
    try:
        while process.is_alive() and not receiver.poll(POLL_SECONDS):
            if stop():
                stopping.set()
        outcome, reason = _received(receiver)
        process.join()
    finally:
        if process.is_alive():
            process.kill()
            process.join()
    assert request.out is not None
    if outcome == "stopped":
        raise Interrupted(request.out)
    if outcome != "done":
        raise UserError(reason or _died(process.exitcode))


def _received(receiver: Connection) -> tuple[str, str]:
    try:
        return receiver.recv()
    except EOFError:
        return "died", ""


def _died(exitcode: int | None) -> str:
    if exitcode == -getattr(signal, "SIGKILL", 9):
        return "its process was killed, probably for want of memory"
    return f"its process ended with status {exitcode}; makemore train shows why"


def _child(
    request: TrainRequest, observe: Observe, rungs: dict[str, str], stopping: Event, sender: Connection
) -> None:
    """What the process does. It stops when told to by the one that started it, or when that one is gone."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    for name, path in rungs.items():
        MODELS.register(name, path)
    parent = multiprocessing.parent_process()
    assert request.out is not None
    assert parent is not None
    observer = observe(request.out.name)
    try:
        train(request, observer, lambda: stopping.is_set() or not parent.is_alive())
        outcome = ("done", "")
    except Interrupted:
        outcome = ("stopped", "")
    except UserError as error:
        outcome = ("failed", str(error))
    finally:
        observer.close()
    sender.send(outcome)
