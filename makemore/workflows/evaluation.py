"""Scores of a saved run."""

from __future__ import annotations

from pathlib import Path

from makemore.corpus.documents import SPLITS
from makemore.corpus.splits import encode_whole
from makemore.errors import UserError, unknown_name
from makemore.scoring import Progress, score
from makemore.types import Score, Split
from makemore.workflows.runs import Run

SPLIT_NAMES = (*SPLITS, "val+test")


def check_split(split: str) -> None:
    """Raises UserError, naming the nearest, for a split that no run has."""
    if any(part not in SPLITS for part in split.split("+")):
        raise unknown_name("split", split, SPLIT_NAMES)


def split_of(run: Run, file: Path | None, split: str | None) -> Split:
    """What to score: a split of the run's own text, a whole other text, or a split of that.

    Raises UserError for an unknown split, or a text that is gone, changed or unreadable.
    """
    if split is not None:
        check_split(split)
    if file is not None and split is None:
        return encode_whole(run.text(file), file.name, run.mode, run.tokenizer)
    return run.corpus(file).split(split or "val")


def evaluate(
    run: Run,
    file: Path | None = None,
    split: str | None = None,
    stride: int | None = None,
    progress: Progress | None = None,
) -> Score:
    """Score a run by the one protocol. Raises UserError for nothing to score."""
    target = split_of(run, file, split)
    if not len(target.tokens_N):
        raise UserError(f"the {target.name} split of {run.name} is empty; name another --split")
    return score(run.model, target, run.tokenizer.token_bytes(), stride, progress)
