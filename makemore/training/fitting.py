"""Run the training loop of a request, from a new or a resumed run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from makemore.evaluation.parts import affordable_part
from makemore.evaluation.scoring import Progress, token_nats
from makemore.models.base import CountModel
from makemore.runs.directory import RunDir
from makemore.runs.run import Run, load
from makemore.runs.training_lines import train_line_hashes
from makemore.runtime import distributed
from makemore.runtime.device import get_rng_state, is_out_of_memory, set_rng_state
from makemore.sampling.text import SampleRequest, sample
from makemore.training.assembly import make_trainer
from makemore.training.learners.gradient import GradientLearner
from makemore.training.observers import Observer
from makemore.training.plan import Plan, run_record
from makemore.training.planning import check_run_dir, prepare
from makemore.training.records import Diverged, NotMainRank, TrainingInterrupted, TrainRecord
from makemore.training.request import TrainRequest, open_source, run_folder
from makemore.training.resume import resume
from makemore.training.saving import read_state, save_record, save_weights
from makemore.training.trainer import Trainer
from makemore.types import Split

N_SAMPLES = 10
EXCERPT_TOKENS = 100
"""Length of the samples shown during training, of running text."""
MIN_SECONDS_TO_SAMPLE = 3.0
"""Training time before the first sample is shown."""
MAX_SCORING_SHARE = 0.1
"""Part of the training time that the final score may take in addition, if the split is long."""
MAX_ROLLBACKS = 10
"""Rollbacks before giving up; each halves the learning rate, to a thousandth in the end."""


@contextlib.contextmanager
def fitted(
    request: TrainRequest, observer: Observer, stop: Callable[[], bool]
) -> Iterator[tuple[Plan, Trainer]]:
    """A context in which training has ended and the run is still locked. All ranks train; ranks other than 0
    raise NotMainRank then."""
    with contextlib.ExitStack() as locks:
        with distributed.process_group(stop):
            main = distributed.is_main()
            observer = observer if main else Observer()
            if distributed.broadcast(_resumes_after_restart(request)):
                request = dataclasses.replace(request, resume=True)
            plan, trainer, run_id = (resume if request.resume else _start_run)(request, observer, stop, locks)
            _fit(plan, trainer, run_id, observer)
        if not main:
            raise NotMainRank
        yield plan, trainer


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
        model.set_document_ends(plan.model.document_ends)
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


def trained_run(plan: Plan) -> Run:
    """The run with its best weights, in eval mode."""
    if isinstance(plan.model, CountModel):  # its tables are large, and as they were saved
        return Run(plan.folder, plan.folder.read_config(), plan.corpus.tokenizer, plan.model.eval())
    return load(plan.folder.path, str(plan.device))


def scoring_progress(observer: Observer, stop: Callable[[], bool], run: Path) -> Progress:
    """Reports the progress of scoring, and raises TrainingInterrupted once ``stop`` returns True."""

    def progress(done: int, total: int) -> None:
        observer.scoring(done, total)
        if stop():
            raise TrainingInterrupted(run)

    return progress


def scored_part(run: Run, split: Split, budget: float | None, observer: Observer) -> Split:
    """A split of a run's text; if it is long, only its beginning, so that scoring it takes about a tenth of
    the training budget, in seconds."""
    if budget is None:
        return split
    seconds = MAX_SCORING_SHARE * budget
    part = affordable_part(split, run.tokenizer, seconds, lambda piece: token_nats(run.model, piece))
    if part is not split:
        share = len(part.tokens_N) / len(split.tokens_N)
        observer.note(f"{split.name} is long: scoring its first {share:.0%}; makemore eval scores all of it")
    return part


def final_samples(run: Run, seed: int) -> list[str]:
    """The samples that are saved with a run: several lines, or one text."""
    return list(sample(run, SampleRequest(n=N_SAMPLES if run.mode == "lines" else 1, seed=seed)))
