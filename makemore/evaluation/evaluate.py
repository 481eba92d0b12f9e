"""Scores of a saved run."""

from __future__ import annotations

import contextlib
from collections.abc import Container
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from makemore.corpus.documents import SPLITS
from makemore.corpus.splits import encode_whole
from makemore.errors import UserError, unknown_name
from makemore.evaluation.dynamic import DynamicSettings, dynamic_nats
from makemore.evaluation.intervals import paired_difference
from makemore.evaluation.scoring import Progress, score, summarise
from makemore.runs.training_lines import seen_lines
from makemore.types import Score, Split

if TYPE_CHECKING:
    from makemore.runs.run import Run

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
        return encode_whole(run.text(file), file.name, run.mode, run.tokenizer, known_lines(run))
    return run.corpus(file).split(split or "val")


def documents_in(run: Run, text: str) -> list[str]:
    """Another text as the run reads texts: its lines, less the blank ones, or all of it."""
    return [line for line in text.split("\n") if line.strip()] if run.mode == "lines" else [text]


def known_lines(run: Run) -> Container[str] | None:
    """The lines that the run was trained on; None where it keeps none and its text is gone."""
    if run.mode == "lines":
        with contextlib.suppress(UserError):
            return seen_lines(run)
    return None


def evaluate(
    run: Run,
    file: Path | None = None,
    split: str | None = None,
    stride: int | None = None,
    progress: Progress | None = None,
) -> Score:
    """Score a run by the one protocol. Raises UserError for nothing to score."""
    return score(run.model, _something(run, file, split), run.tokenizer, stride, progress)


def _something(run: Run, file: Path | None, split: str | None) -> Split:
    target = split_of(run, file, split)
    if not len(target.tokens_N):
        raise UserError(f"the {target.name} split of {run.name} is empty; name another --split")
    return target


@dataclass(frozen=True)
class DynamicScore:
    """The score of a run whose weights follow the text, and how far it is from the plain one."""

    score: Score
    settings: DynamicSettings
    difference: float
    """To the plain score, in bits per byte; below 0 where following the text helped."""
    difference_ci95: tuple[float, float]

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            **self.score.as_dict(),
            "difference": self.difference,
            "difference_ci95": list(self.difference_ci95),
            "settings": asdict(self.settings),
        }


def evaluate_dynamic(
    run: Run,
    plain: Score,
    file: Path | None = None,
    split: str | None = None,
    stride: int | None = None,
    settings: DynamicSettings | None = None,
    progress: Progress | None = None,
) -> DynamicScore:
    """Score a run that goes on learning from what it has been scored on, beside its ``plain`` score.

    Raises UserError for a run that isn't trained by gradients, or whose training text is gone.
    """
    target, settings = _something(run, file, split), settings or DynamicSettings()
    train = run.corpus().split("train")
    nats_N = dynamic_nats(run.model, target, train, settings, stride, progress)
    found = summarise(target, nats_N, run.tokenizer.token_bytes())
    difference, ci95 = paired_difference(found.unit_nats_U, plain.unit_nats_U, plain.unit_bytes_U)
    return DynamicScore(found, settings, difference, ci95)
