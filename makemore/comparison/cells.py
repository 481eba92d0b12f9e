"""The runs that a comparison trains: every combination of models, tokenizers, settings and seeds."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from makemore.corpus.datasets import resolve_input_file
from makemore.errors import UserError
from makemore.models import MODELS
from makemore.runs.schema import RunConfig
from makemore.runtime.device import pick_device
from makemore.settings.base import arrange, flatten, setting_names
from makemore.tokenizers import require_valid_spec
from makemore.training.request import TrainRequest, parse_assignments

DEFAULT_SECONDS = 90.0
"""Training time of each run if no budget is set; the whole ladder takes about 17 minutes."""

VARIED_SECTIONS = ("model", "train")
"""Not ``corpus``: scores on other splits can't be ranked together."""


@dataclass(frozen=True, kw_only=True)
class CellsRequest:
    """The runs to train on one text."""

    models: str = "all"
    tokenizers: str = "char"
    seeds: int = 1
    """Runs per model, with seeds counting from 0."""
    steps: int | None = None
    max_time: float | None = None
    grid: tuple[str, ...] = ()
    """Settings and their values, as ``section.name=value,value``."""
    total_time: float | None = None
    """Training time of all runs in seconds, shared by successive halving."""
    out: Path | None = None
    device: str = "auto"
    overwrite: bool = False


@dataclass(frozen=True)
class Cell:
    """A run to train."""

    request: TrainRequest
    settings: dict[str, str] = field(default_factory=dict)
    """Values of the grid's settings, by full name."""

    @property
    def folder(self) -> Path:
        assert self.request.out is not None
        return self.request.out


def make_cells(text: str, request: CellsRequest) -> list[Cell]:
    """Every combination, to train on a text; all are trained once before the next seed.

    A setting of the grid applies to the models that have it. Raises UserError for invalid requests.
    """
    path = resolve_input_file(text)
    models = _models(request.models)
    tokenizers = list(dict.fromkeys(spec.strip() for spec in request.tokenizers.split(",")))
    for spec in tokenizers:
        require_valid_spec(spec)
    pick_device(request.device)
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    for name, number in (("seeds", request.seeds), ("steps", request.steps)):
        if number is not None and number < 1:
            raise UserError(f"--{name} {number}: must be 1 or more")
    points = {model: _points(model, request.grid) for model in models}
    _require_used(request.grid, points)
    out = request.out or Path("checkpoints") / f"{path.stem}-compare"
    return [
        _cell(request, path, out, model=model, tokenizer=tokenizer, settings=settings, seed=seed)
        for seed in range(request.seeds)
        for model in models
        for tokenizer in tokenizers
        for settings in points[model]
    ]


def _models(names: str) -> list[str]:
    if names == "all":
        return [name for name in MODELS if MODELS.get(name).is_trainable]
    models = list(dict.fromkeys(name.strip() for name in names.split(",")))
    for name in models:
        if not (MODELS.get(name).is_trainable or MODELS.get(name).trains_members):
            raise UserError(f"a {name} is made of trained runs; give run directories or another model")
    return models


def _points(model: str, grid: Sequence[str]) -> list[dict[str, str]]:
    """The combinations of those of the grid's settings that a model has, by full name."""
    known = set(setting_names(RunConfig.for_model(model)))
    axes = [
        [(name, value) for value in values]
        for name, values in (_parse_axis(model, text) for text in grid)
        if name in known and not (MODELS.get(model).trains_members and name.startswith("model."))
    ]
    return [dict(combination) for combination in itertools.product(*axes)]


def _parse_axis(model: str, text: str) -> tuple[str, list[str]]:
    """A setting's full name and the different values to give it."""
    name, equals, values = (part.strip() for part in text.partition("="))
    section = name.partition(".")[0]
    # Commas within brackets belong to a list.
    options = [value.strip() for value in re.split(r",(?![^\[]*\])", values)]
    if not equals or "." not in name or section not in VARIED_SECTIONS or not all(options):
        raise UserError(f"--grid {text!r}: write section.name=value,value, such as model.n_layer=2,4")
    (nested,) = parse_assignments((f"{name}={options[0]}",))
    full = next(iter(flatten(arrange(RunConfig.for_model(model), nested))))
    return full, list(dict.fromkeys(options))


def _require_used(grid: Sequence[str], points: dict[str, list[dict[str, str]]]) -> None:
    """Raise UserError for a setting of the grid that no model has, or that is given twice."""
    for text in grid:
        used = [model for model in points if _parse_axis(model, text)[0] in points[model][0]]
        name = text.partition("=")[0].strip()
        if not used and name.startswith("model."):
            raise UserError(f"--grid {name}: none of {', '.join(points)} has this setting")
        if not used:
            model = next(iter(points))
            TrainRequest(model=model, settings=(f"{name}={_parse_axis(model, text)[1][0]}",))  # explains why
            raise UserError(f"--grid {name}: not a setting of a run")
    for model, combinations in points.items():
        names = [_parse_axis(model, text)[0] for text in grid]
        twice = [name for name in combinations[0] if names.count(name) > 1]
        if twice:
            raise UserError(f"--grid {twice[0]}: given twice; list all values in one")


def _cell(
    request: CellsRequest,
    path: Path,
    out: Path,
    *,
    model: str,
    tokenizer: str,
    settings: dict[str, str],
    seed: int,
) -> Cell:
    budget: dict[str, Any] = {"steps": request.steps, "max_time": request.max_time}
    budget = {k: v for k, v in budget.items() if v is not None} or {"max_time": DEFAULT_SECONDS}
    labels = [f"{name.rpartition('.')[2]}={value}" for name, value in settings.items()]
    parts = [model, tokenizer.replace(":", "-"), *(re.sub(r"[^\w.+=-]", "_", label) for label in labels)]
    train = TrainRequest(
        input=str(path),
        model=model,
        tokenizer=tokenizer,
        out=out / "-".join([*parts, str(seed)]),
        train={**budget, "seed": seed, "device": request.device},
        settings=tuple(f"{name}={value}" for name, value in settings.items()),
        overwrite=request.overwrite,
    )
    return Cell(train, settings)
