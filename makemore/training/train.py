"""From a text to a trained, scored, saved run."""

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
from makemore.runs.training_lines import hashes_to_keep
from makemore.runtime import distributed as parallel
from makemore.runtime.device import peak_memory
from makemore.sampling.text import SampleRequest, sample
from makemore.training.assembly import make_trainer
from makemore.training.learners.gradient import GradientLearner
from makemore.training.observers import Observer, Silent
from makemore.training.planning import (
    Plan,
    TrainRequest,
    config_file,
    prepare,
    require_room,
    run_folder,
    source_of,
)
from makemore.training.resume import resume
from makemore.training.saving import keep, keep_best
from makemore.training.trainer import Diverged, Trainer
from makemore.types import Score

SAMPLES_SHOWN = 10
ROLLBACKS = 10
"""How often a run may go back before its rate, by then a thousandth, is not to blame."""


class Interrupted(Exception):  # noqa: N818 - a wish, not an error
    """Training was asked to stop; ``run`` holds a state that resumes."""

    def __init__(self, run: Path) -> None:
        super().__init__(f"stopped; go on with --resume added to the same command (state saved in {run})")
        self.run = run


class Helped(Exception):  # noqa: N818 - all went well
    """Training is done, and this was not the process that scores and samples."""


@dataclass(frozen=True)
class TrainResult:
    """A finished run and its figures."""

    run: Run
    score: Score
    steps: int
    best_step: int
    tokens: int
    seconds: float
    stopped_early: bool
    samples: list[str]
    used: dict[str, Any]
    """What it was really trained with: device, threads, precision, compiled or in C, optimizer, weights."""
    peak_memory: int | None
    """Bytes, of the process or of its tensors on CUDA, at most; None where the system doesn't say."""

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

    ``stop`` is asked at every step; once it says yes, the state is saved and Interrupted raised.
    Raises UserError for what the user can mend, before anything is written. Of several processes all
    but the first raise Helped at the end.
    """
    with contextlib.ExitStack() as held:
        with parallel.session(stop):
            main = parallel.is_main()
            if observer is None or not main:
                observer = Silent()
            request = parallel.from_main(_after_restart(request))
            plan, trainer, run_id = (resume if request.resume else _begin)(request, observer, stop, held)
            _fit(plan, trainer, run_id, observer)
        if not main:
            raise Helped
        return _conclude(plan, trainer, observer, stop)


def _after_restart(request: TrainRequest) -> TrainRequest:
    """Go on with what torchrun's attempt before this one has begun, from its last state."""
    if not (parallel.size() > 1 and parallel.is_main() and parallel.restarted()):
        return request
    folder = RunDir(run_folder(request, source_of(request)))
    if not folder.exists or folder.read_config().get("launch") != parallel.launch_id():
        return request
    return dataclasses.replace(request, resume=True)


def _begin(
    request: TrainRequest, observer: Observer, stop: Callable[[], bool], held: contextlib.ExitStack
) -> tuple[Plan, Trainer, str]:
    plan = prepare(request, observer)
    trainer = make_trainer(plan, stop)
    if plan.init_from:
        _judge_start(plan, trainer, observer)
    state = trainer.state_dict()
    parallel.highest(0)  # all have looked at the folder before anything is written
    run_id = ""
    if parallel.is_main():
        held.enter_context(plan.folder.locked())
        require_room(plan.folder, request)  # another process may have begun a run meanwhile
        plan.folder.clear()
        seen_U = hashes_to_keep(plan.corpus)
        run_id = plan.folder.create(config_file(plan), plan.corpus.tokenizer.to_dict(), state, seen_U)
        if plan.init_from:
            keep_best(plan, trainer, run_id)
    return plan, trainer, run_id


def _judge_start(plan: Plan, trainer: Trainer, observer: Observer) -> None:
    """Weights that were taken over are kept unless training betters them."""
    val = trainer.judge().val
    if val is not None:
        observer.note(f"starts from {plan.init_from}: val {val:.4f} nats/token")


def _fit(plan: Plan, trainer: Trainer, run_id: str, observer: Observer) -> None:
    observer.start(plan)
    for left in reversed(range(ROLLBACKS + 1)):
        try:
            _train_on(plan, trainer, run_id, observer)
        except Diverged as error:
            if not left or plan.train.on_divergence == "stop":
                raise
            _roll_back(plan, trainer, run_id, observer, str(error))
        else:
            break
    parallel.highest(0)


def _train_on(plan: Plan, trainer: Trainer, run_id: str, observer: Observer) -> None:
    if trainer.finished:
        return
    for record in trainer.fit():
        # Every process has a part of the state.
        state = trainer.state_dict() if record.save else None
        if parallel.is_main():
            keep(plan, trainer, record, state, run_id)
        if record.note:
            observer.note(record.note)
        observer.record(record)
    if trainer.stopped:
        weights = trainer.learner.weights()
        if parallel.is_main() and not trainer.best:
            plan.folder.write_model(weights, run_id)
        parallel.highest(0)
        raise Interrupted(plan.folder.path)


def _roll_back(plan: Plan, trainer: Trainer, run_id: str, observer: Observer, why: str) -> None:
    """Back to the last state saved, at half the learning rate."""
    saved = parallel.from_main(plan.folder.read_state(run_id) if parallel.is_main() else None)
    assert saved is not None
    trainer.go_back(saved.state)
    if parallel.is_main():
        plan.folder.cut_metrics(trainer.step, saved.metrics)
        if trainer.best:
            keep_best(plan, trainer, run_id)
    assert isinstance(trainer.learner, GradientLearner)
    share = trainer.learner.optimizers.scale
    observer.note(
        f"{why.partition(':')[0]}; back to step {trainer.step:,}, at {share:g} of the learning rate"
    )


def _conclude(plan: Plan, trainer: Trainer, observer: Observer, stop: Callable[[], bool]) -> TrainResult:
    """Score the best model on val (train where there is no val), sample it, save both."""
    memory = peak_memory(plan.device)

    def scoring(done: int, total: int) -> None:
        observer.scoring(done, total)
        if stop():
            raise Interrupted(plan.folder.path)

    run = load(plan.folder.path, str(plan.device))
    split = plan.corpus.splits["val" if len(plan.corpus.splits["val"].tokens_N) else "train"]
    figures = score(run.model, split, run.tokenizer, progress=scoring)
    n = SAMPLES_SHOWN if plan.corpus.mode == "lines" else 1
    samples = list(sample(run, SampleRequest(n=n, seed=plan.train.seed)))
    result = TrainResult(
        run,
        figures,
        trainer.step,
        trainer.best_step,
        trainer.tokens,
        trainer.elapsed,
        trainer.stopped_early,
        samples,
        _used(plan, trainer),
        memory,
    )
    plan.folder.write_samples("\n".join(samples) + "\n")
    plan.folder.write_result(result.as_dict())
    return result


def _used(plan: Plan, trainer: Trainer) -> dict[str, Any]:
    """What the settings came to: ``auto`` resolved, compiling as it turned out."""
    used: dict[str, Any] = {
        "device": str(plan.device),
        "threads": torch.get_num_threads(),
        "precision": str(trainer.learner.precision).removeprefix("torch."),
        "compiled": trainer.learner.compiled,
        "native": plan.native is not None,
        "optimizer": plan.train.optimizer,
        "weights": trainer.best_weights,
    }
    if trainer.learner.not_compiled:
        used["not_compiled"] = trainer.learner.not_compiled
    return used
