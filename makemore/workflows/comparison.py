"""Which kind of model is really better on a text, by how much, at what cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from makemore.checkpoint import CONFIG
from makemore.datasets import open_input
from makemore.errors import UserError
from makemore.models import MODELS
from makemore.types import Score
from makemore.workflows.evaluation import check_split, evaluate
from makemore.workflows.runs import Run, load
from makemore.workflows.training import Observer, TrainRequest, train


@dataclass(frozen=True)
class CompareRequest:
    """What to compare: one text, on which every rung is trained, or existing runs."""

    inputs: tuple[str, ...]
    models: str = "all"
    tokenizer: str = "char"
    max_time: float = 60.0
    split: str = "val"
    seed: int = 0
    device: str = "auto"
    overwrite: bool = False


@dataclass(frozen=True)
class Row:
    """One run's figures."""

    name: str
    folder: Path
    parameters: int
    seconds: float
    tokens: int
    score: Score

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "run": str(self.folder),
            "parameters": self.parameters,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens / max(self.seconds, 1e-9),
            **self.score.as_dict(),
        }


def _row(run: Run, name: str, split: str) -> Row:
    result = run.folder.read_result() or {}
    return Row(
        name,
        run.folder.path,
        run.model.n_parameters(),
        float(result.get("seconds", 0.0)),
        int(result.get("tokens", 0)),
        evaluate(run, split=split),
    )


def compare(
    request: CompareRequest, observe: Callable[[str], Observer], stop: Callable[[], bool] = lambda: False
) -> list[Row]:
    """Rows, fewest bits per byte first. ``observe`` makes an observer for each rung trained.

    Raises UserError for unknown rungs, or runs whose splits differ, and Interrupted when stopped.
    """
    check_split(request.split)
    if all((Path(path) / CONFIG).exists() for path in request.inputs):
        rows = _compare_runs(request)
    elif len(request.inputs) > 1:
        raise UserError("give one text to train on, or run directories only")
    else:
        rows = _compare_rungs(request, observe, stop)
    return sorted(rows, key=lambda row: row.score.bits_per_byte)


def _compare_runs(request: CompareRequest) -> list[Row]:
    runs = [load(path, request.device) for path in request.inputs]
    digests = [run.config["corpus"]["digests"] for run in runs]
    for run, digest in zip(runs, digests, strict=True):
        if digest != digests[0]:
            raise UserError(
                f"{run.name} and {runs[0].name} were trained on different splits; can't rank them"
            )
    return [_row(run, run.name, request.split) for run in runs]


def _compare_rungs(
    request: CompareRequest, observe: Callable[[str], Observer], stop: Callable[[], bool]
) -> list[Row]:
    if request.models == "all":
        names = [name for name in MODELS if MODELS.get(name).standalone]
    else:
        names = [name.strip() for name in request.models.split(",")]
    for name in names:
        if not MODELS.get(name).standalone:
            raise UserError(f"a {name} is made of trained runs; name them, or another rung")
    stem = open_input(request.inputs[:1]).stem
    rows = []
    for name in names:
        folder = Path("checkpoints") / f"{stem}-compare" / name
        training = TrainRequest(
            request.inputs[0],
            name,
            request.tokenizer,
            folder,
            {"max_time": request.max_time, "seed": request.seed, "device": request.device},
            resume=folder.exists() and not request.overwrite,
            overwrite=request.overwrite,
        )
        result = train(training, observe(name), stop)
        rows.append(_row(result.run, name, request.split))
    return rows
