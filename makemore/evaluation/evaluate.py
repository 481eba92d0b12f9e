"""Score a saved run."""

from __future__ import annotations

import contextlib
from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from makemore.corpus.documents import SPLITS, single_split
from makemore.corpus.splits import Corpus, encode_documents
from makemore.errors import UserError, unknown_name
from makemore.evaluation.adaptive import DynamicSettings, Reader, learned, make_reader
from makemore.evaluation.copies import with_copies
from makemore.evaluation.distributions import Fold, halves
from makemore.evaluation.intervals import paired_difference
from makemore.evaluation.scoring import Progress, check_totals, make_score, score
from makemore.models.base import LanguageModel, MixtureModel
from makemore.runs.run import Run
from makemore.runs.training_lines import train_lines
from makemore.sampling.text import SampleRequest, context_ids, normalize_prompt
from makemore.types import Score, Split

SPLIT_NAMES = (*SPLITS, "val+test")


def check_split(split: str) -> None:
    """Raise UserError, suggesting the nearest name, if the split is unknown."""
    if any(part not in SPLITS for part in split.split("+")):
        raise unknown_name("split", split, SPLIT_NAMES)


def get_split(run: Run, file: Path | None, split: str | None) -> Split:
    """Get the split to score: a split of the run's text (default: val), or ``file`` or one of its splits.

    Raises UserError if the split is unknown or empty, or if the text is missing, changed or unreadable, or
    has no characters that the run can encode.
    """
    return _split_and_corpus(run, file, split)[0]


def _split_and_corpus(run: Run, file: Path | None, split: str | None) -> tuple[Split, Corpus | None]:
    """The split to score, and the corpus that it belongs to; None if it is a whole file."""
    if file is not None and split is None:
        name = "stdin" if str(file) == "-" else file.name
        documents = single_split(run.text(file), name, run.mode)
        text = encode_documents(name, documents.read(name), run.mode, run.tokenizer, training_lines(run))
        require_known_text(run, text)
        return text, None
    name = "val" if split is None else split
    check_split(name)
    corpus = run.corpus(file)
    part = corpus.split(name)
    if not len(part.tokens_N):
        raise UserError(f"the {name} split of {run.name} is empty; name another --split")
    return part, corpus


def split_documents(run: Run, text: str) -> list[str]:
    """Split another text into documents in the run's mode: its non-blank lines, or one document."""
    return [line for line in text.split("\n") if line.strip()] if run.mode == "lines" else [text]


def training_lines(run: Run) -> Container[str] | None:
    """Training lines of the run. Returns None in ``text`` mode or if the text is no longer available."""
    if run.mode == "lines":
        with contextlib.suppress(UserError):
            return train_lines(run)
    return None


def evaluate(
    run: Run, file: Path | None = None, split: str | None = None, stride: int | None = None
) -> Score:
    """Score a run with the scoring protocol. Raises UserError like ``get_split``."""
    target, corpus = _split_and_corpus(run, file, split)
    if corpus is not None and file is None:
        return score_own(run, corpus, target, stride)
    result = score(run.model, target, run.tokenizer, stride)
    return result if corpus is None else with_copies(result, corpus, target)


def score_own(
    run: Run, corpus: Corpus, split: Split, stride: int | None = None, progress: Progress | None = None
) -> Score:
    """Score a split of ``corpus``, the run's own text. Raises the errors of ``score``."""
    folds = own_folds(run.model, corpus, split)
    return with_copies(score(run.model, split, run.tokenizer, stride, progress, folds), corpus, split)


def own_folds(model: LanguageModel, corpus: Corpus, split: Split) -> list[Fold]:
    """The folds of a split of a gated mixture's own text: val is scored by gates that weren't fitted there.
    Empty for other models and splits."""
    if not (isinstance(model, MixtureModel) and model.is_gated) or not split.name.startswith("val"):
        return []
    folds = halves(corpus.splits["val"], model.vocab_size)
    return [*folds, (len(split.tokens_N), 0)] if split.name != "val" else folds


def require_known_text(run: Run, text: Split) -> None:
    """Raise UserError if the run's tokenizer can encode nothing of a text, or only white space."""
    unknown = 0 if text.unknown_chars_D is None else int(text.unknown_chars_D.sum())
    is_unknown = unknown > len(text.tokens_N) and not run.tokenizer.decode_bytes(text.tokens_N).strip()
    if is_unknown or not len(text.tokens_N):
        raise UserError(f"{text.name} has no characters that {run.name} can encode; use another text")


def adaptive_reader(run: Run, settings: DynamicSettings | None = None, stride: int | None = None) -> Reader:
    """Reads texts with a run's model, which learns as it reads. Raises the errors of ``make_reader``."""
    return make_reader(run.model, lambda: run.corpus().split("train"), settings, stride)


def adapted_run(run: Run, request: SampleRequest) -> Run:
    """The run with a copy of its model that has learned from the prompt of a request.

    Raises UserError if there is no prompt, or if the model can't learn from it.
    """
    if not normalize_prompt(run, request):
        raise UserError("--adaptive learns from the prompt; give --prompt or --prompt-file")
    return replace(run, model=learned(adaptive_reader(run), context_ids(run, request)))


@dataclass(frozen=True, kw_only=True)
class AdaptiveScore:
    """Adaptive score of a run and its difference from the frozen score."""

    score: Score
    difference: float
    """Adaptive minus frozen score, in bits per byte; negative if learning from the text helped."""
    difference_ci95: tuple[float, float]

    def as_dict(self) -> dict[str, Any]:
        return {
            **self.score.as_dict(),
            "difference": self.difference,
            "difference_ci95": list(self.difference_ci95),
        }


def adaptive_score(
    run: Run,
    file: Path | None = None,
    split: str | None = None,
    stride: int | None = None,
    settings: DynamicSettings | None = None,
) -> Score:
    """Score a run whose model learns from each part of the text once it has predicted it.

    Raises the errors of ``get_split`` and ``make_reader``.
    """
    target, corpus = _split_and_corpus(run, file, split)
    check_totals(target, run.tokenizer)
    reader = adaptive_reader(run, settings, stride)
    if corpus is not None and file is None:
        reader.folds = own_folds(run.model, corpus, target)
    return make_score(target, reader.read(target).nats_N, run.tokenizer.token_bytes())


def evaluate_adaptive(
    run: Run,
    frozen: Score,
    file: Path | None = None,
    split: str | None = None,
    stride: int | None = None,
    settings: DynamicSettings | None = None,
) -> AdaptiveScore:
    """The adaptive score of a run, compared with its ``frozen`` score of the same text."""
    result = adaptive_score(run, file, split, stride, settings)
    difference, ci95 = paired_difference(result.unit_nats_U, frozen.unit_nats_U, frozen.unit_bytes_U)
    return AdaptiveScore(score=result, difference=difference, difference_ci95=ci95)
