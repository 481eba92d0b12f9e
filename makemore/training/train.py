"""Train a model on a text, then score, sample and save the run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from makemore.evaluation.scoring import score
from makemore.runs.directory import RunDir
from makemore.runs.run import Run, load
from makemore.runs.training_lines import train_line_hashes
from makemore.runtime import distributed, native
from makemore.runtime.device import peak_memory
from makemore.sampling.text import SampleRequest, sample
from makemore.training.assembly import make_trainer
from makemore.training.learners.gradient import GradientLearner
from makemore.training.observers import NullObserver, Observer
from makemore.training.plan import Plan, run_config
from makemore.training.planning import check_run_dir, prepare
from makemore.training.records import Diverged
from makemore.training.request import TrainRequest, open_source, run_folder
from makemore.training.resume import resume
from makemore.training.saving import save_best, save_record
from makemore.training.trainer import Trainer
from makemore.types import Score

N_SAMPLES = 10
MAX_ROLLBACKS = 10
"""Rollbacks before giving up; each halves the learning rate, to a thousandth in the end."""


class TrainingInterrupted(Exception):  # noqa: N818 - requested by the user, not an error
    """Training was interrupted; ``run`` holds a state to resume from."""

    def __init__(self, run: Path) -> None:
        super().__init__(f"stopped; add --resume to the same command to continue (state saved in {run})")
        self.run = run


class NotMainRank(Exception):  # noqa: N818 - not an error
    """Training finished on a rank other than 0, which alone scores and samples."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A finished run and its metrics."""

    run: Run
    score: Score
    steps: int
    best_step: int
    tokens: int
    seconds: float
    stopped_early: bool
    samples: list[str]
    used: dict[str, Any]
    """Resolved settings: device, threads, precision, compiled or native, optimizer, kind of weights."""
    peak_memory: int | None
    """Peak memory of the process, or of its tensors on CUDA, in bytes; None if unavailable."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "run": str(self.run.folder.path),
            "model": self.run.config["model"]["name"],
            "parameters": self.run.model.n_parameters(),
            "steps": self.steps,
            "best_step": self.best_step,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(self.tokens / max(self.seconds, 1e-9), 1),
            "stopped_early": self.stopped_early,
            "peak_memory": self.peak_memory,
            "used": self.used,
            self.score.split: self.score.as_dict(),
            "samples": self.samples,
        }


def train(
    request: TrainRequest, observer: Observer | None = None, stop: Callable[[], bool] = lambda: False
) -> TrainResult:
    """Train, score and save a run.

    ``stop`` is called at every step; once it returns True, the state is saved and TrainingInterrupted raised.
    Raises UserError for an invalid request, before anything is written. Ranks other than 0 raise NotMainRank
    at the end.
    """
    with contextlib.ExitStack() as locks:
        with distributed.process_group(stop):
            main = distributed.is_main()
            if observer is None or not main:
                observer = NullObserver()
            if distributed.broadcast(_resumes_after_restart(request)):
                request = dataclasses.replace(request, resume=True)
            plan, trainer, run_id = (resume if request.resume else _start_run)(request, observer, stop, locks)
            _fit(plan, trainer, run_id, observer)
        if not main:
            raise NotMainRank
        return _finish_run(plan, trainer, observer, stop)


def _resumes_after_restart(request: TrainRequest) -> bool:
    """Whether torchrun restarted the processes and the previous attempt created this run; valid on rank 0."""
    if not (distributed.world_size() > 1 and distributed.is_main() and distributed.was_restarted()):
        return False
    folder = RunDir(run_folder(request, open_source(request)))
    return folder.exists and folder.read_config().get("launch") == distributed.launch_id()


def _start_run(
    request: TrainRequest, observer: Observer, stop: Callable[[], bool], locks: contextlib.ExitStack
) -> tuple[Plan, Trainer, str]:
    plan = prepare(request, observer)
    trainer = make_trainer(plan, stop)
    if plan.init_from:
        _evaluate_start(plan, trainer, observer)
    state = trainer.state_dict()
    distributed.all_reduce_max(0)  # barrier: every rank checks the folder before rank 0 writes to it
    run_id = ""
    if distributed.is_main():
        locks.enter_context(plan.folder.locked())
        check_run_dir(plan.folder, request)  # another process may have created a run since
        plan.folder.clear()
        seen_U = train_line_hashes(plan.corpus)
        run_id = plan.folder.create(run_config(plan), plan.corpus.tokenizer.to_dict(), state, seen_U)
        if plan.init_from:
            save_best(plan, trainer, run_id)
    return plan, trainer, run_id


def _evaluate_start(plan: Plan, trainer: Trainer, observer: Observer) -> None:
    """Evaluate the initial weights: they are kept unless training improves on them."""
    val = trainer.evaluate_now().val
    if val is not None:
        observer.note(f"starts from {plan.init_from}: val {val:.4f} nats/token")


def _fit(plan: Plan, trainer: Trainer, run_id: str, observer: Observer) -> None:
    observer.start(plan)
    for rollbacks_left in reversed(range(MAX_ROLLBACKS + 1)):
        try:
            _run_trainer(plan, trainer, run_id, observer)
        except Diverged as error:
            if not rollbacks_left or plan.train.on_divergence == "stop":
                raise
            _roll_back(plan, trainer, run_id, observer, str(error))
        else:
            break
    distributed.all_reduce_max(0)


def _run_trainer(plan: Plan, trainer: Trainer, run_id: str, observer: Observer) -> None:
    if trainer.finished:
        return
    for record in trainer.fit():
        # Collective: every rank holds a part of the state.
        state = trainer.state_dict() if record.save else None
        if distributed.is_main():
            save_record(plan, trainer, record, state, run_id)
        if record.note:
            observer.note(record.note)
        observer.record(record)
    if trainer.interrupted:
        weights = trainer.learner.weights()
        if distributed.is_main() and not trainer.best:
            plan.folder.write_model(weights, run_id)
        distributed.all_reduce_max(0)
        raise TrainingInterrupted(plan.folder.path)


def _roll_back(plan: Plan, trainer: Trainer, run_id: str, observer: Observer, reason: str) -> None:
    """Return to the last saved state and halve the learning rate."""
    saved = distributed.broadcast(plan.folder.states.read_newest(run_id) if distributed.is_main() else None)
    assert saved is not None
    trainer.rollback(saved.state)
    if distributed.is_main():
        plan.folder.metrics.truncate(trainer.step, saved.metrics)
        if trainer.best:
            save_best(plan, trainer, run_id)
    assert isinstance(trainer.learner, GradientLearner)
    scale = trainer.learner.optimizers.scale
    observer.note(
        f"{reason.partition(':')[0]}; back to step {trainer.step:,}, learning rate scaled by {scale:g}"
    )


def _finish_run(plan: Plan, trainer: Trainer, observer: Observer, stop: Callable[[], bool]) -> TrainResult:
    """Score the best model on val (train if val is empty), sample it, and save both."""
    memory = peak_memory(plan.device)

    def scoring(done: int, total: int) -> None:
        observer.scoring(done, total)
        if stop():
            raise TrainingInterrupted(plan.folder.path)

    run = load(plan.folder.path, str(plan.device))
    split = plan.corpus.splits["val" if len(plan.corpus.splits["val"].tokens_N) else "train"]
    final_score = score(run.model, split, run.tokenizer, progress=scoring)
    n = N_SAMPLES if plan.corpus.mode == "lines" else 1
    samples = list(sample(run, SampleRequest(n=n, seed=plan.train.seed)))
    result = TrainResult(
        run=run,
        score=final_score,
        steps=trainer.step,
        best_step=trainer.best_step,
        tokens=trainer.tokens,
        seconds=trainer.elapsed,
        stopped_early=trainer.stopped_early,
        samples=samples,
        used=_effective_settings(plan, trainer),
        peak_memory=memory,
    )
    plan.folder.write_samples("\n".join(samples) + "\n")
    plan.folder.write_result(result.as_dict())
    return result


def _effective_settings(plan: Plan, trainer: Trainer) -> dict[str, Any]:
    """The settings in effect, with ``auto`` resolved."""
    used: dict[str, Any] = {
        "device": str(plan.device),
        "threads": torch.get_num_threads(),
        "precision": str(trainer.learner.precision).removeprefix("torch."),
        "compiled": trainer.learner.compiled,
        "native": plan.native is not None,
        "optimizer": plan.train.optimizer,
        "weights": trainer.best_weights,
    }
    if native.failures:
        used["c_build_errors"] = dict(native.failures)
    if trainer.learner.compile_error:
        used["not_compiled"] = trainer.learner.compile_error
    return used
