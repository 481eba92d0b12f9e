"""How the loss of a model falls with its size and training time: the runs to train, and the fitted laws."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from makemore.comparison.cells import DEFAULT_SECONDS, Cell, CellsRequest, make_cells
from makemore.comparison.forecast import ScalingLaw
from makemore.comparison.result import RankedModel
from makemore.corpus.datasets import resolve_input_file
from makemore.errors import UserError
from makemore.models import MODELS
from makemore.models.base import CountModel

TIMES = (0.125, 0.25, 0.5, 1.0)
"""Training times, as fractions of ``--max-time`` or ``--steps``."""
WIDTHS = (0.25, 0.5, 1, 2)
"""Widths, as fractions of the model's default."""
MIN_RUNS = 7
"""Fewest runs of a model to which a law of five coefficients is fitted."""


def scaling_cells(text: str, request: CellsRequest) -> list[Cell]:
    """The runs of a scaling study: each model at several widths and training times.

    ``grid`` replaces the widths. Models that count or have no width are trained once. Raises UserError
    for invalid requests.
    """
    out = request.out or Path("checkpoints") / f"{resolve_input_file(text).stem}-scaling"
    request = dataclasses.replace(request, out=out)
    models = dict.fromkeys(cell.request.model for cell in make_cells(text, request))
    scaled = [model for model in models if _width_setting(model)]
    once = ",".join(model for model in models if model not in scaled)
    times = _times(request)
    cells = make_cells(text, dataclasses.replace(request, models=once, grid=())) if once else []
    cells = [_labelled(cell, *times[-1]) for cell in cells]
    if request.grid:
        groups = [(",".join(scaled), request.grid)] if scaled else []
    else:
        groups = [(model, (_width_setting(model),)) for model in scaled]
    for names, grid in groups:
        for name, time in times:
            changes: dict[str, Any] = {name: time, "models": names, "grid": grid}
            timed = make_cells(text, dataclasses.replace(request, **changes))
            cells += [_labelled(cell, name, time) for cell in timed]
    if request.grid and len({tuple(cell.settings.values()) for cell in cells}) < 2 * len(TIMES):
        raise UserError("--scaling needs at least two values in --grid, to compare sizes")
    return cells


def _times(request: CellsRequest) -> list[tuple[str, float]]:
    """The setting that limits training, and its values. Raises UserError if they are too small to differ."""
    name = "steps" if request.steps else "max_time"
    longest = request.steps or request.max_time or DEFAULT_SECONDS
    times = [
        round(fraction * longest) if request.steps else round(fraction * longest, 2) for fraction in TIMES
    ]
    if min(times) < 1:
        least = round(1 / min(TIMES))
        raise UserError(
            f"--scaling also trains for {min(TIMES):g} of the budget: give at least {least} s or steps"
        )
    return [(name, time) for time in times]


def _labelled(cell: Cell, name: str, time: float) -> Cell:
    """The cell with its training time among its settings and in its folder's name, and a fixed shape."""
    base, _, seed = cell.folder.name.rpartition("-")
    out = cell.folder.with_name(f"{base}-{name}={time:g}-{seed}")
    train = dataclasses.replace(
        cell.request, out=out, settings=(*_shape(cell.request.model), *cell.request.settings)
    )
    return Cell(train, {**cell.settings, f"train.{name}": f"{time:g}"})


def _shape(model: str) -> tuple[str, ...]:
    """The default number of heads and layers, which a recipe would choose together with its width."""
    defaults = MODELS.get(model).Config()
    names = [name for name in ("n_head", "n_layer") if hasattr(defaults, name)]
    return tuple(f"model.{name}={getattr(defaults, name)}" for name in names)


def _width_setting(model: str) -> str:
    """The widths to train, as an argument of ``--grid``; empty for a model that has no width."""
    kind = MODELS.get(model)
    if issubclass(kind, CountModel) or not kind.is_trainable:
        return ""
    defaults = kind.Config()
    names = [name for name in ("n_hidden", "n_embd") if name in type(defaults).model_fields]
    if not names:
        return ""
    default = getattr(defaults, names[0])
    return f"model.{names[0]}={','.join(str(max(8, round(default * fraction))) for fraction in WIDTHS)}"


def fit_scaling(rows: Sequence[RankedModel]) -> tuple[list[ScalingLaw], list[str]]:
    """A law for each model with enough runs, and why others have none."""
    laws, notes = [], []
    for model, tokenizer in dict.fromkeys((row.model, row.tokenizer) for row in rows):
        runs = [run for row in rows if (row.model, row.tokenizer) == (model, tokenizer) for run in row.runs]
        if not _width_setting(model):
            notes.append(f"{model}: no power law, since it has no width to vary")
            continue
        sizes, times = {run.parameters for run in runs}, {run.tokens for run in runs}
        if len(runs) < MIN_RUNS or len(sizes) < 2 or len(times) < 2:
            notes.append(
                f"{model}: no power law: that takes {MIN_RUNS} runs, with two sizes and two training times"
            )
            continue
        laws.append(
            ScalingLaw(
                model=model,
                tokenizer=tokenizer,
                parameters_K=np.array([run.parameters for run in runs], float),
                tokens_K=np.array([run.tokens for run in runs], float),
                seconds_K=np.array([run.seconds for run in runs]),
                bits_K=np.array([run.score.bits_per_byte for run in runs]),
                train_tokens=runs[0].config.text.tokens["train"],
            )
        )
    return laws, notes
