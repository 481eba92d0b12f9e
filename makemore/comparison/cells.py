"""The runs that a comparison trains: every combination of models, tokenizers, settings and seeds."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from makemore.corpus.datasets import resolve_input_file
from makemore.corpus.decoding import blank_text_error
from makemore.errors import UserError
from makemore.models import MODELS
from makemore.runs.directory import CONFIG
from makemore.runs.schema import RunConfig
from makemore.runtime.device import pick_device
from makemore.settings.base import arrange, flatten, setting_names
from makemore.tokenizers import require_valid_spec
from makemore.training.request import TrainRequest, parse_assignments, requested_config

DEFAULT_SECONDS = 90.0
"""Training time of each run if no budget is set; the whole ladder takes about 17 minutes."""

VARIED_SECTIONS = ("model", "train")
"""Not ``corpus``: scores on other splits can't be ranked together."""
OPTIONS = {
    "train.seed": "--seeds",
    "train.steps": "--steps",
    "train.max_time": "--max-time",
    "train.runtime.device": "--device",
    "tokenizer": "--tokenizers",
}
"""Settings that have an option of their own."""


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
    """A run for every combination, to train on a text. All combinations with one seed come before the next
    seed.

    A setting of the grid applies to the models that have it. Raises UserError for invalid requests.
    """
    path = resolve_input_file(text)
    models = _models(request.models)
    tokenizers = list(dict.fromkeys(spec.strip() for spec in request.tokenizers.split(",")))
    for spec in tokenizers:
        require_valid_spec(spec)
    pick_device(request.device)
    _require_text(path)
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


def _require_text(path: Path) -> None:
    """Raise UserError for what isn't a file, and for an empty one."""
    if path.is_dir():
        runs = [run.parent for run in sorted(path.glob(f"*/{CONFIG}"))]
        advice = f"give its runs, such as {runs[0]}" if runs else "give a text file"
        raise UserError(f"{path} is a directory; {advice}")
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    if path.stat().st_size == 0:
        raise blank_text_error(str(path))


def _models(names: str) -> list[str]:
    if names == "all":
        return [name for name in MODELS if MODELS.get(name).is_trainable]
    models = list(dict.fromkeys(name.strip() for name in names.split(",")))
    for name in models:
        if not (MODELS.get(name).is_trainable or MODELS.get(name).trains_members):
            raise UserError(f"a {name} is made of trained runs; give run directories or another model")
    return models


def short_name(name: str) -> str:
    """A setting's name without its section, for folders and rows; still unique."""
    return name.partition(".")[2]


def _points(model: str, grid: Sequence[str]) -> list[dict[str, str]]:
    """All combinations of the grid's settings, by full name; settings that the model lacks are left out."""
    known = set(setting_names(RunConfig.for_model(model)))
    axes: dict[str, list[tuple[str, str]]] = {}
    for name, values in (_parse_axis(model, text) for text in grid):
        if name in axes:
            raise UserError(f"--grid {name}: given twice; list all values in one")
        if name in known and not (MODELS.get(model).trains_members and name.startswith("model.")):
            axes[name] = [(name, value) for value in values]
    return [dict(combination) for combination in itertools.product(*axes.values())]


def _parse_axis(model: str, text: str) -> tuple[str, list[str]]:
    """A setting's full name and the different values to give it."""
    name, equals, values = (part.strip() for part in text.partition("="))
    # Commas within brackets belong to a list.
    options = [value.strip() for value in re.split(r",(?![^\[]*\])", values)]
    section, dot, _ = name.partition(".")
    if section == "corpus":
        raise UserError(f"--grid {name}: scores on other splits can't be ranked together")
    is_setting = (dot and section in VARIED_SECTIONS) or name in OPTIONS
    if not equals or not is_setting or not all(options):
        raise UserError(f"--grid {text!r}: write section.name=value,value, such as model.n_layer=2,4")
    (nested,) = parse_assignments((f"{name}={options[0]}",))
    full = next(iter(flatten(arrange(RunConfig.for_model(model), nested))))
    if full in OPTIONS:
        raise UserError(f"--grid {name}: use {OPTIONS[full]} instead")
    return full, list(dict.fromkeys(options))


def _require_used(grid: Sequence[str], points: dict[str, list[dict[str, str]]]) -> None:
    """Raise UserError for a setting of the grid that no model has."""
    for text in grid:
        name, _, values = (part.strip() for part in text.partition("="))
        if any(_parse_axis(model, text)[0] in points[model][0] for model in points):
            continue
        first = next(iter(points))
        requested_config([{"model": {"name": first}}, *parse_assignments((f"{name}={values}",))])  # says why
        raise UserError(f"--grid {name}: none of {', '.join(points)} has this setting")


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
    labels = [f"{short_name(name)}={value}" for name, value in settings.items()]
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
