"""Train a model on a text, then score, sample and save the run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from makemore.evaluation.baseline import Baseline, count_baseline, remark, uniform_nll
from makemore.evaluation.evaluate import score_own
from makemore.evaluation.scoring import Progress
from makemore.models import MODELS
from makemore.models.base import CountModel
from makemore.runtime import native
from makemore.runtime.device import peak_memory
from makemore.training.fitting import final_samples, fitted, scored_part, scoring_progress, trained_run
from makemore.training.mixing.auto import train_auto
from makemore.training.observers import Observer
from makemore.training.plan import Plan
from makemore.training.records import TrainResult
from makemore.training.request import TrainRequest
from makemore.training.trainer import Trainer
from makemore.types import Split


def train(
    request: TrainRequest, observer: Observer | None = None, stop: Callable[[], bool] = lambda: False
) -> TrainResult:
    """Train, score and save a run.

    ``stop`` is called at every step; once it returns True, the state is saved and TrainingInterrupted raised.
    Raises UserError for an invalid request, before anything is written. Ranks other than 0 raise NotMainRank
    at the end.
    """
    observer = observer or Observer()
    if MODELS.get(request.model).trains_members:
        return train_auto(request, observer, stop)
    with fitted(request, observer, stop) as (plan, trainer):
        return _finish_run(plan, trainer, observer, stop)


def _finish_run(plan: Plan, trainer: Trainer, observer: Observer, stop: Callable[[], bool]) -> TrainResult:
    """Score the best model on val (train if val is empty), sample it, and save both."""
    memory = peak_memory(plan.device)
    run, progress = trained_run(plan), scoring_progress(observer, stop, plan.folder.path)
    split = plan.corpus.splits["val" if len(plan.corpus.splits["val"].tokens_N) else "train"]
    split = scored_part(run, split, plan.train.max_time, observer)
    score = score_own(run, plan.corpus, split, progress=progress)
    baseline = _fit_baseline(plan, split, progress)
    samples = final_samples(run, plan.train.seed)
    result = TrainResult(
        run=run,
        score=score,
        steps=trainer.step,
        best_step=trainer.best_step,
        tokens=trainer.tokens,
        seconds=trainer.elapsed,
        stopped_early=trainer.stopped_early,
        samples=samples,
        used=_effective_settings(plan, trainer),
        peak_memory=memory,
        baseline=baseline,
        remark=remark(
            plan.model_name,
            score,
            uniform=uniform_nll(score, run.model.vocab_size),
            baseline=baseline,
            train_tokens=len(plan.corpus.splits["train"].tokens_N),
            still_improving=trainer.best_step == trainer.step and not trainer.stopped_early,
            hardly_begun=_hardly_begun(plan, trainer),
        ),
    )
    plan.folder.write_samples("\n".join(samples) + "\n")
    plan.folder.write_result(result.as_dict())
    return result


def _hardly_begun(plan: Plan, trainer: Trainer) -> bool:
    """Whether training ended during warm-up, or counting in the middle of the text."""
    if isinstance(plan.model, CountModel):
        return (trainer.loader.progress or 0.0) < 1
    return trainer.step <= plan.train.schedule.warmup_steps and not trainer.stopped_early


def _fit_baseline(plan: Plan, scored: Split, progress: Progress) -> Baseline | None:
    """The score of a count model on the same text, to compare a neural network with."""
    if isinstance(plan.model, CountModel) or not scored.name.startswith("val"):
        return None
    with contextlib.suppress(MemoryError):
        train, tokenizer = plan.corpus.splits["train"], plan.corpus.tokenizer
        return count_baseline(train, scored, tokenizer, progress=progress)
    return None


def _effective_settings(plan: Plan, trainer: Trainer) -> dict[str, Any]:
    """The settings in effect, with ``auto`` resolved."""
    used: dict[str, Any] = {
        "device": str(plan.device),
        "threads": torch.get_num_threads(),
        "precision": str(trainer.learner.precision).removeprefix("torch."),
        "compiled": trainer.learner.compiled,
        "native": plan.native is not None,
        "optimizer": plan.train.optimizer.name,
        "weights": trainer.best_weights,
    }
    if native.failures:
        used["c_build_errors"] = dict(native.failures)
    if trainer.learner.compile_error:
        used["not_compiled"] = trainer.learner.compile_error
    return used
