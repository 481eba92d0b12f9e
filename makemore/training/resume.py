"""Going on with a run: what it was begun with, what may change, and its last good state."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

from makemore.errors import UserError
from makemore.models import MODELS
from makemore.models.base import CountModel
from makemore.runs.directory import CONFIG, STATES, TOKENIZER, RunDir, Saved
from makemore.runs.run import corpus_config_of
from makemore.runs.training_lines import hashes_to_keep
from makemore.runtime import distributed as parallel
from makemore.runtime.files import tensor_digest, well_formed
from makemore.runtime.memory import for_weights
from makemore.settings import TrainConfig, override
from makemore.tokenizers import tokenizer_from_dict
from makemore.training.assembly import make_trainer
from makemore.training.changes import CHANGEABLE, changes, refuse_changes, require_tokenizer
from makemore.training.observers import Observer
from makemore.training.planning import (
    Plan,
    TrainRequest,
    asked_settings,
    config_file,
    encoded,
    has_budget,
    make_model,
    plan_run,
    run_folder,
    source_of,
)
from makemore.training.saving import keep_best
from makemore.training.trainer import Trainer


def resume(
    request: TrainRequest, observer: Observer, stop: Callable[[], bool], held: contextlib.ExitStack
) -> tuple[Plan, Trainer, str]:
    """Go on where a run stopped; a larger budget may be given, other settings may not change."""
    MODELS.path(request.model)
    asked = asked_settings(request)
    source = source_of(request)
    folder = RunDir(run_folder(request, source))
    # Only the first process need have the run on its disk.
    if parallel.is_main() and folder.occupied:
        held.enter_context(folder.locked())
        for problem in folder.mend():
            observer.note(f"{problem}; written anew from a state")
    config = parallel.from_main(folder.read_config() if parallel.is_main() else {})
    run_id = config["run_id"]
    changed = {k: asked["train"].pop(k) for k in CHANGEABLE if k in asked["train"]}
    name = config["model"]["name"]
    if request.model != name:
        raise UserError(f"the run's model is {name}, not {request.model}; resume it with --model {name}")
    saved = parallel.from_main(folder.read_state(run_id) if parallel.is_main() else None)
    assert saved is not None
    kind = MODELS.get(request.model)
    with well_formed(folder.path / STATES):
        model_config = override(kind.Config(), saved.state["settings"], "model")
    with well_formed(folder.path / CONFIG):
        before = override(TrainConfig(), config["train"], "train")
        train = override(before, changed, "train")
        corpus_config = corpus_config_of(config)
    if not (has_budget(train) or issubclass(kind, CountModel)):  # which takes one pass, however long
        raise UserError("the run has neither steps nor time to train for; add --steps or --max-time")
    require_tokenizer(request.tokenizer, config["tokenizer"])
    refuse_changes({"model": model_config, "train": train, "corpus": corpus_config}, asked)
    data = parallel.from_main(folder.read_tokenizer(run_id) if parallel.is_main() else {})
    with well_formed(folder.path / TOKENIZER):
        tokenizer = tokenizer_from_dict(data)
    corpus = encoded(source, corpus_config, tokenizer, observer)
    if corpus.digests != config["corpus"]["digests"]:
        raise UserError(f"{source.name} is not the text that {folder.path} was trained on; can't go on")
    with well_formed(folder.path / STATES):
        most = for_weights(saved.state["learner"]["model"].values())
    model = make_model(kind, model_config, corpus.tokenizer, train.seed, most)
    request = dataclasses.replace(request, tokenizer=config["tokenizer"])
    plan = plan_run(request, folder, source, model, corpus, train, corpus_config)
    trainer = make_trainer(plan, stop)
    for problem in saved.problems:
        observer.note(f"{problem}; going back to the state before")
    with well_formed(folder.path / STATES):
        trainer.load_state_dict(saved.state)
    budgets = [(getattr(train, k) or 0, getattr(before, k) or 0) for k in ("steps", "max_time")]
    trainer.carry_on(any(now > then for now, then in budgets))
    if parallel.is_main():
        _tell_changes(plan, config, trainer, observer)
        _mend(plan, trainer, saved, run_id, observer)
    observer.note(f"resuming at step {trainer.step:,}")
    return plan, trainer, run_id


def _tell_changes(plan: Plan, config: dict[str, Any], trainer: Trainer, observer: Observer) -> None:
    """Say what is other than before, and keep it with the run."""
    lines = changes(config, config_file(plan), plan.train)
    for line in lines:
        observer.note(line)
    if trainer.finished:
        why = "val stopped improving; raise train.patience" if trainer.stopped_early else "give more --steps"
        observer.note(f"the run has ended at step {trainer.step:,}: {why} to go on")
    if lines:
        known = config.get("resumed")
        history = [*(known if isinstance(known, list) else []), {"step": trainer.step, "changes": lines}]
        train = dataclasses.asdict(plan.train)
        plan.folder.write_config({**config, "train": train, "resumed": history})


def _mend(plan: Plan, trainer: Trainer, saved: Saved, run_id: str, observer: Observer) -> None:
    """Bring what training writes beside its states back to where the state is."""
    plan.folder.sweep()
    if problem := plan.folder.cut_metrics(trainer.step, saved.metrics):
        observer.note(f"{problem}; the lines that can be read are kept")
    try:
        plan.folder.read_seen(plan.folder.read_config())
    except UserError as error:
        observer.note(f"{error}; written anew from the text")
        seen_U = hashes_to_keep(plan.corpus)
        if seen_U is not None:
            plan.folder.write_seen(seen_U, run_id)
    if not trainer.best:
        return
    try:
        as_then = tensor_digest(plan.folder.read_model(run_id)) == tensor_digest(trainer.best)
    except UserError as error:
        observer.note(f"{error}; written anew from the state")
        as_then = False
    if not as_then:
        keep_best(plan, trainer, run_id)
