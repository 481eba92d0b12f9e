"""List the runs in a folder with their scores."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from makemore.errors import UserError
from makemore.runs.directory import CHECKPOINTS, CONFIG, RESULT, STATES, RunDir


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One run; ``split`` and ``bits_per_byte`` are None if it has no result."""

    run: str
    model: str
    tokenizer: str
    text: str
    split: str | None
    bits_per_byte: float | None
    share: float = 1.0
    """The part of the split that was scored, from its beginning."""
    modified: float
    """Time of the last change, in seconds since the epoch."""
    problem: str = ""
    """Why the run can't be read; empty if it can."""


def list_runs(folder: Path = CHECKPOINTS) -> list[RunSummary]:
    """The runs in a folder and its subfolders, by text, then best first. Raises UserError if it has none."""
    paths = [path.parent for pattern in ("*", "*/*") for path in folder.glob(f"{pattern}/{CONFIG}")]
    # Exported models have a config.json, too, but neither results nor states.
    paths = [path for path in paths if (path / RESULT).exists() or (path / STATES).exists()]
    if not paths:
        raise UserError(f"no runs in {folder}; create one with makemore train")
    summaries = [_summarise(path) for path in paths]
    scores = {row: math.inf if row.bits_per_byte is None else row.bits_per_byte for row in summaries}
    return sorted(scores, key=lambda row: (row.text, row.split != "val", scores[row], row.run))


def _summarise(path: Path) -> RunSummary:
    folder, model, tokenizer, text, problem = RunDir(path), "", "", "", ""
    split, bits, share = None, None, 1.0
    try:
        config = folder.read_config()
        model, tokenizer, text = config.model.name, config.tokenizer, config.text.name
        if result := folder.read_result():
            split = "val" if result.val else "train" if result.train else None
            if score := result.val or result.train:
                bits = score.bits_per_byte
                share = min(1.0, (score.tokens or math.inf) / config.text.tokens.get(str(split), 1))
    except UserError as error:
        problem = str(error)
    newest = path / RESULT if (path / RESULT).exists() else path / CONFIG
    return RunSummary(
        run=str(path),
        model=model,
        tokenizer=tokenizer,
        text=text,
        split=split,
        share=share,
        bits_per_byte=bits,
        modified=newest.stat().st_mtime,
        problem=problem,
    )
