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

    ``grid`` replaces the widths. A model without a width, or that counts, is trained once. Raises UserError
    for invalid requests.
    """
    time_setting = "steps" if request.steps else "max_time"
    longest = request.steps or request.max_time or DEFAULT_SECONDS
    out = request.out or Path("checkpoints") / f"{resolve_input_file(text).stem}-scaling"
    models = dict.fromkeys(cell.request.model for cell in make_cells(text, request))
    cells = []
    for model in models:
        width = _width_setting(model)
        if width is None:
            cells += make_cells(text, dataclasses.replace(request, models=model, grid=(), out=out))
            continue
        for fraction in TIMES:
            time = max(1, round(fraction * longest)) if request.steps else round(fraction * longest, 2)
            changes: dict[str, Any] = {
                time_setting: time,
                "models": model,
                "out": out / f"{time}{'-steps' if request.steps else 's'}",
                "grid": request.grid or (width,),
            }
            name = f"train.{time_setting}"
            cells += [
                Cell(cell.request, {**cell.settings, name: str(time)})
                for cell in make_cells(text, dataclasses.replace(request, **changes))
            ]
    return cells


def _width_setting(model: str) -> str | None:
    """The widths to train, as an argument of ``--grid``; None for a model that has no width."""
    kind = MODELS.get(model)
    if issubclass(kind, CountModel) or not kind.is_trainable:
        return None
    defaults = kind.Config()
    names = [name for name in ("n_hidden", "n_embd") if name in type(defaults).model_fields]
    if not names:
        return None
    default = getattr(defaults, names[0])
    return f"model.{names[0]}={','.join(str(max(8, round(default * fraction))) for fraction in WIDTHS)}"


def fit_scaling(rows: Sequence[RankedModel]) -> tuple[list[ScalingLaw], list[str]]:
    """A law for each model with enough runs, and why others have none."""
    laws, notes = [], []
    for model in dict.fromkeys(row.model for row in rows):
        runs = [run for row in rows if row.model == model for run in row.runs]
        sizes, times = {run.parameters for run in runs}, {run.tokens for run in runs}
        if len(runs) < MIN_RUNS or len(sizes) < 2 or len(times) < 2:
            notes.append(f"{model}: no law, which takes {MIN_RUNS} runs of different size and time")
            continue
        laws.append(
            ScalingLaw(
                model=model,
                parameters_K=np.array([run.parameters for run in runs], float),
                tokens_K=np.array([run.tokens for run in runs], float),
                seconds_K=np.array([run.seconds for run in runs]),
                bits_K=np.array([run.score.bits_per_byte for run in runs]),
                passes=max(run.tokens / run.config.text.tokens["train"] for run in runs),
            )
        )
    return laws, notes
