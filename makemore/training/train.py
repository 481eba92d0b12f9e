"""Train a model on a text, then score, sample and save the run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from makemore.evaluation.baseline import Baseline, count_baseline, remark, uniform_nll
from makemore.evaluation.copies import with_copies
from makemore.evaluation.scoring import Progress, score
from makemore.models.base import CountModel
from makemore.runs.directory import RunDir
from makemore.runs.run import Run, load
from makemore.runs.training_lines import train_line_hashes
from makemore.runtime import distributed, native
from makemore.runtime.device import get_rng_state, is_out_of_memory, peak_memory, set_rng_state
from makemore.sampling.text import SampleRequest, sample
from makemore.training.assembly import make_trainer
from makemore.training.learners.gradient import GradientLearner
from makemore.training.observers import NullObserver, Observer
from makemore.training.plan import Plan, run_record
from makemore.training.planning import check_run_dir, prepare
from makemore.training.records import Diverged, TrainRecord
from makemore.training.request import TrainRequest, open_source, run_folder
from makemore.training.resume import resume
from makemore.training.saving import read_state, save_record, save_weights
from makemore.training.trainer import Trainer
from makemore.types import Score

N_SAMPLES = 10
EXCERPT_TOKENS = 100
"""Length of the samples shown during training, of running text."""
MIN_SECONDS_TO_SAMPLE = 3.0
"""Training time before the first sample is shown."""
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
    baseline: Baseline | None
    """Score of a count model on the same val; None for count models, without val, or without the memory."""
    remark: str
    """What is wrong with the score, compared to the baseline and to guessing; empty if nothing is."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "run": str(self.run.folder.path),
            "model": self.run.config.model.name,
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
            "baseline": None if self.baseline is None else self.baseline.as_dict(),
            "remark": self.remark,
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
    return folder.exists and _launch(folder) == distributed.launch_id()


def _launch(folder: RunDir) -> str:
    """Id of the torchrun launch that created the run."""
    environment = folder.read_config().environment
    return environment.launch if environment else ""


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
        run_id = plan.folder.create(run_record(plan), plan.corpus.tokenizer.to_dict(), state, seen_U)
    else:
        plan.folder.write_state(0, state, run_id)
    if plan.init_from:
        save_weights(plan, trainer.best, run_id)
    return plan, trainer, run_id


def _evaluate_start(plan: Plan, trainer: Trainer, observer: Observer) -> None:
    """Evaluate the initial weights: they are kept unless training improves on them."""
    val = trainer.evaluate_now().val
    if val is not None:
        observer.note(f"starts from {plan.init_from}: val≈ {val:.4f} nats/token")


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
    quarter = int(4 * trainer.progress)
    for record in trainer.fit():
        save_record(plan, trainer, record, run_id)
        if record.note:
            observer.note(record.note)
        observer.record(record)
        evaluated = record.val is not None or trainer.evaluate is None
        if evaluated and int(4 * record.progress) > quarter:
            quarter = int(4 * record.progress)
            if observer.wants_samples and _is_worth_sampling(trainer, record):
                _show_samples(plan, trainer, observer)
    if trainer.interrupted:
        if not trainer.best:
            save_weights(plan, trainer.learner.state_dict()["model"], run_id)
        distributed.all_reduce_max(0)
        raise TrainingInterrupted(plan.folder.path)


def _is_worth_sampling(trainer: Trainer, record: TrainRecord) -> bool:
    """Whether to sample in the middle of training: not at its end, where the best model is sampled, and not
    if the weights are sharded or the run is short."""
    is_neural = isinstance(trainer.learner, GradientLearner)
    is_long = record.elapsed >= MIN_SECONDS_TO_SAMPLE
    return is_neural and is_long and record.progress < 1 and not trainer.learner.sharded


def _show_samples(plan: Plan, trainer: Trainer, observer: Observer) -> None:
    """Sample a copy of the model, so that training isn't affected; nothing is shown if memory runs out."""
    rng = get_rng_state(plan.device)
    try:
        model = type(plan.model)(plan.model.config, plan.model.vocab_size, plan.model.boundary_id)
        model.load_state_dict(plan.model.state_dict())
        run = Run(plan.folder, run_record(plan), plan.corpus.tokenizer, model.to(plan.device).eval())
        n, length = (N_SAMPLES, None) if plan.corpus.mode == "lines" else (1, EXCERPT_TOKENS)
        request = SampleRequest(n=n, max_new_tokens=length, seed=plan.train.seed)
        observer.samples(list(sample(run, request)))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    finally:
        set_rng_state(rng, plan.device)


def _roll_back(plan: Plan, trainer: Trainer, run_id: str, observer: Observer, reason: str) -> None:
    """Return to the last saved state and halve the learning rate."""
    saved = read_state(plan.folder, run_id, trainer.learner.sharded)
    trainer.rollback(saved.state)
    if distributed.is_main():
        plan.folder.metrics.truncate(trainer.step, saved.metrics)
    if trainer.best:
        save_weights(plan, trainer.best, run_id)
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

    if isinstance(plan.model, CountModel):  # its tables are large, and as they were saved
        run = Run(plan.folder, plan.folder.read_config(), plan.corpus.tokenizer, plan.model.eval())
    else:
        run = load(plan.folder.path, str(plan.device))
    split = plan.corpus.splits["val" if len(plan.corpus.splits["val"].tokens_N) else "train"]
    final_score = with_copies(score(run.model, split, run.tokenizer, progress=scoring), plan.corpus, split)
    baseline = _fit_baseline(plan, scoring)
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
        baseline=baseline,
        remark=remark(
            plan.model_name,
            final_score,
            uniform=uniform_nll(final_score, run.model.vocab_size),
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


def _fit_baseline(plan: Plan, progress: Progress) -> Baseline | None:
    """The score of a count model, to compare a neural network with."""
    splits, model = plan.corpus.splits, plan.model
    if isinstance(model, CountModel) or not len(splits["val"].tokens_N):
        return None
    with contextlib.suppress(MemoryError):
        return count_baseline(
            splits["train"], splits["val"], model.vocab_size, model.boundary_id, progress=progress
        )
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
