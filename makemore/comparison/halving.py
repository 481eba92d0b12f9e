"""Successive halving: share a total training time among runs, of which the worse half stops at each round.

Jamieson & Talwalkar 2016, "Non-stochastic best arm identification and hyperparameter optimization". Every
round takes the same total time, so each remaining run gets about twice as much extra time as in the round
before. Every run has the schedule of one that reaches the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from makemore.comparison.cells import Cell
from makemore.comparison.grid import Failure, ObserverFactory, check_settings, train_in_subprocess
from makemore.errors import UserError
from makemore.evaluation.scoring import estimate_loss
from makemore.models import MODELS
from makemore.runs.directory import RunDir
from makemore.runs.run import load
from makemore.runtime.files import read_json, write_json
from makemore.training.request import TrainRequest

STATE = "halving.json"
MIN_SECONDS = 5.0
"""Training time, in seconds, below which hardly any model has learned enough to be compared."""
VAL_TOKENS = 1 << 15
"""Tokens of val on which runs are compared after a round."""


class Round(NamedTuple):
    """A round: how many combinations take part, and the seconds that each run has been trained by its end."""

    size: int
    seconds: float


def plan_rounds(n: int, n_seeds: int, total: float) -> list[Round]:
    """Rounds that take the same total time; each keeps about half of the n settings, rounded up."""
    sizes = [n]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    rounds, seconds = [], 0.0
    for size in sizes:
        seconds += total / len(sizes) / (size * n_seeds)
        rounds.append(Round(size, round(seconds, 2)))
    return rounds


def _plan_line(rounds: Sequence[Round], n_runs: int) -> str:
    seconds = rounds[0].seconds
    line = f"{len(rounds)} rounds; in the first, each of {n_runs} runs trains for {seconds:g} s"
    if len(rounds) == 1 or seconds >= MIN_SECONDS:
        return line
    return f"{line}, which is short: chance may decide; raise --budget-total or give fewer values"


class Halved(NamedTuple):
    """The runs that exist, and what was stopped early, with the reason."""

    folders: list[Path]
    failures: list[Failure]
    stopped: list[str]


def train_halving(
    cells: Sequence[Cell],
    total: float,
    out: Path,
    observe: ObserverFactory,
    stop: Callable[[], bool],
) -> Halved:
    """Train runs round by round; repeating the call resumes it.

    Raises UserError if ``out`` holds other runs, and TrainingInterrupted when stopped.
    """
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        request = cell.request
        if MODELS.get(request.model).trains_members:
            raise UserError(f"{request.model} can't be stopped halfway; leave it out, or --budget-total")
        groups.setdefault((request.model, request.tokenizer, *cell.settings.items()), []).append(cell)
    rounds = plan_rounds(len(groups), len(cells) // len(groups), total)
    observe("").note(_plan_line(rounds, len(cells)))
    progress = _Progress(out, cells, total)
    for cell in cells:
        _require_same_run(cell, rounds[-1].seconds)
    failures, stopped = dict[str, Failure](), list[str]()
    alive = list(groups.values())
    for nth, (_, seconds) in enumerate(rounds):
        for cell in [cell for group in alive for cell in group]:
            is_first = nth == 0 and cell.request.overwrite
            if is_first or _trained_seconds(RunDir(cell.folder)) < seconds:
                request = _request_for(cell, rounds[-1].seconds, restarts=is_first)
                until = None if nth + 1 == len(rounds) else seconds
                try:
                    train_in_subprocess(request, observe, stop, until)
                except UserError as error:
                    failures[cell.folder.name] = Failure(cell.folder.name, str(error))
        alive = [group for group in alive if not any(cell.folder.name in failures for cell in group)]
        if nth + 1 < len(rounds) and alive:
            schedule = f"{seconds:g} of {rounds[-1].seconds:g} s"
            alive, dropped = _better(alive, progress.losses(nth, alive), rounds[nth + 1].size, schedule)
            stopped += dropped
            for line in dropped:
                observe("").note(line)
    folders = [cell.folder for cell in cells if cell.folder.name not in failures and cell.folder.exists()]
    return Halved(folders, list(failures.values()), stopped)


def _better(
    groups: Sequence[list[Cell]], losses: dict[str, float], keep: int, schedule: str
) -> tuple[list[list[Cell]], list[str]]:
    """The best groups, and a line about each of the others."""
    ranked = sorted(groups, key=lambda group: losses[group[0].folder.name])
    lines = [
        f"{group[0].folder.name.rpartition('-')[0]}: stopped after {schedule}, "
        f"val≈ {losses[group[0].folder.name]:.4f} nats/char, behind the best {keep} of {len(ranked)}"
        for group in ranked[keep:]
    ]
    return ranked[:keep], lines


def _request_for(cell: Cell, seconds: float, restarts: bool) -> TrainRequest:
    """A request to start or continue a run whose learning rates follow a schedule of ``seconds``."""
    train = {**cell.request.train, "max_time": seconds}
    resume = RunDir(cell.folder).exists and not restarts
    return dataclasses.replace(cell.request, train=train, resume=resume, overwrite=restarts)


def _require_same_run(cell: Cell, seconds: float) -> None:
    """Raise UserError if the run to be continued has other settings."""
    folder = RunDir(cell.folder)
    if folder.exists and not cell.request.overwrite:
        check_settings(_request_for(cell, seconds, restarts=False), folder.read_config())


def _trained_seconds(folder: RunDir) -> float:
    """Training time so far in seconds; infinite if the run is finished."""
    if not folder.exists:
        return 0.0
    if folder.read_result() is not None:
        return float("inf")
    return max((float(record.get("elapsed", 0)) for record in folder.metrics.read()), default=0.0)


class _Progress:
    """The losses after each round, kept in a file, since runs that have been trained further can't be scored
    at an earlier state."""

    def __init__(self, out: Path, cells: Sequence[Cell], total: float) -> None:
        self.path = out / STATE
        names = [cell.folder.name for cell in cells]
        self.state: dict[str, Any] = {"cells": names, "seconds": total, "rounds": []}
        if cells[0].request.overwrite:
            self.path.unlink(missing_ok=True)
        if self.path.exists():
            saved = read_json(self.path)
            if (saved.get("cells"), saved.get("seconds")) != (names, total):
                raise UserError(
                    f"{out} holds other runs or another --budget-total; choose another --out, or --overwrite"
                )
            self.state["rounds"] = saved["rounds"]

    def losses(self, nth: int, alive: Sequence[Sequence[Cell]]) -> dict[str, float]:
        """Mean loss over the seeds of each group on val, by the name of its first run."""
        rounds: list[dict[str, float]] = self.state["rounds"]
        if nth == len(rounds):
            rounds.append({})
        missing = [group for group in alive if group[0].folder.name not in rounds[nth]]
        rounds[nth] |= {group[0].folder.name: sum(map(_loss, group)) / len(group) for group in missing}
        if missing:
            write_json(self.path, self.state)
        return rounds[nth]


def _loss(cell: Cell) -> float:
    """Nats per character on part of val, so that tokenizers can be compared."""
    run = load(cell.folder, str(cell.request.requested.train.runtime.device))
    val = run.corpus().splits["val"]
    if not len(val.tokens_N):
        raise UserError("--budget-total compares runs on val, which is empty; use more text")
    return estimate_loss(run.model, val, VAL_TOKENS) * len(val.tokens_N) / val.chars
