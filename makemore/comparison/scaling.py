"""How the loss of a model falls with its size and training time: the runs to train, and the fitted laws."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from makemore.comparison.cells import DEFAULT_SECONDS, Cell, CellsRequest, make_cells
from makemore.comparison.forecast import ScalingLaw
from makemore.comparison.result import RankedModel, ScoredRun
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
    names = dict.fromkeys(cell.request.model for cell in make_cells(text, request))
    scaled = [name for name in names if _width_setting(name)]
    once = ",".join(name for name in names if name not in scaled)
    setting, times = _times(request)

    def cells_of(models: str, grid: Sequence[str], time: float) -> list[Cell]:
        changes: dict[str, Any] = {setting: time, "models": models, "grid": tuple(grid)}
        return [
            _with_time(c, setting, time) for c in make_cells(text, dataclasses.replace(request, **changes))
        ]

    cells = cells_of(once, (), times[-1]) if once else []
    if request.grid:
        groups = [(",".join(scaled), request.grid)] if scaled else []
    else:
        groups = [(model, (_width_setting(model),)) for model in scaled]
    cells += [cell for models, grid in groups for time in times for cell in cells_of(models, grid, time)]
    if request.grid and len({tuple(cell.settings.values()) for cell in cells}) < 2 * len(TIMES):
        raise UserError("--scaling needs at least two values in --grid, to compare sizes")
    return cells


def _times(request: CellsRequest) -> tuple[str, list[float]]:
    """The setting that limits training, and its values. Raises UserError if they are too small to differ."""
    if request.steps:
        setting, times = "steps", [float(round(fraction * request.steps)) for fraction in TIMES]
    else:
        longest = request.max_time or DEFAULT_SECONDS
        setting, times = "max_time", [round(fraction * longest, 2) for fraction in TIMES]
    if min(times) < 1:
        least = round(1 / min(TIMES))
        raise UserError(f"--scaling also trains for 1/{least} of the budget; use at least {least} s or steps")
    return setting, times


def _with_time(cell: Cell, setting: str, time: float) -> Cell:
    """Add the time to the cell's settings and folder name, and fix the number of layers and heads."""
    base, _, seed = cell.folder.name.rpartition("-")
    out = cell.folder.with_name(f"{base}-{setting}={time:g}-{seed}")
    settings = (*_default_shape(cell.request.model), *cell.request.settings)
    request = dataclasses.replace(cell.request, out=out, settings=settings)
    return Cell(request, {**cell.settings, f"train.{setting}": f"{time:g}"})


def _default_shape(model: str) -> tuple[str, ...]:
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


def _ended_in_warmup(run: ScoredRun) -> bool:
    return run.steps <= run.config.train.schedule.warmup_steps


def fit_scaling(rows: Sequence[RankedModel]) -> tuple[list[ScalingLaw], list[str]]:
    """A law for each model with enough runs, and why others have none."""
    laws, notes = [], []
    for model, tokenizer in dict.fromkeys((row.model, row.tokenizer) for row in rows):
        runs = [run for row in rows if (row.model, row.tokenizer) == (model, tokenizer) for run in row.runs]
        if not _width_setting(model):
            notes.append(f"{model}: no power law, since it has no width to vary")
            continue
        n_runs, runs = len(runs), [run for run in runs if not _ended_in_warmup(run)]
        if len(runs) < n_runs:
            notes.append(
                f"{model}: {n_runs - len(runs)} of {n_runs} runs are not part of the law, because they ended "
                "during warm-up; train longer"
            )
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
