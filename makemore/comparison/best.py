"""Write the settings of a comparison's best run as a TOML file for ``makemore train --config``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomli_w

from makemore.comparison.result import Comparison
from makemore.errors import UserError
from makemore.models import MODELS
from makemore.runs.schema import RunRecord
from makemore.runtime.files import require_replaceable, write_bytes

MARK = "# Settings of the best run of makemore compare"


def require_best_path(path: Path) -> None:
    """Raise UserError, before anything is trained, for a file that can't be written there."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UserError(f"--best {path}: name a file in an existing folder, such as best.toml")
    require_replaceable(path, [MARK.encode()], "--best")


def write_best(path: Path, comparison: Comparison) -> str:
    """Write the file; returns the best run's name. Raises UserError if settings alone can't repeat it."""
    row = comparison.rows[0]
    if row.config.mixed and not MODELS.get(row.model).trains_members:
        raise UserError(f"the best run, {row.name}, is a mixture of runs, which --best can't describe")
    if row.config.init_from:
        raise UserError(f"the best run, {row.name}, began with the weights of {row.config.init_from}")
    settings = tomli_w.dumps(settings_to_repeat(row.config))
    write_bytes(path, f"{MARK}\n{settings}".encode())
    return row.name


def settings_to_repeat(config: RunRecord) -> dict[str, Any]:
    """A run's settings without the seed and the machine's; of ``auto``, only the tokenizer and the model."""
    if MODELS.get(config.model.name).trains_members:
        return {"tokenizer": config.tokenizer, "model": {"name": config.model.name}}
    values = config.model_dump(
        mode="json",
        include={"tokenizer", "model", "train", "corpus"},
        exclude={"train": {"seed", "runtime"}},
        exclude_none=True,
    )
    return {"tokenizer": values.pop("tokenizer"), **values}
