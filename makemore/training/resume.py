"""Resume a run from its last good state, with the settings that may change."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from torch.utils._pytree import tree_leaves

from makemore.corpus.decoding import UnusableTextError
from makemore.corpus.source import Source
from makemore.errors import UserError
from makemore.models import MODELS
from makemore.models.base import CountModel
from makemore.runs.directory import STATES, TOKENIZER, RunDir
from makemore.runs.schema import Resumption, RunConfig, RunRecord
from makemore.runs.states import SavedState
from makemore.runs.training_lines import train_line_hashes
from makemore.runtime import distributed
from makemore.runtime.device import pick_device
from makemore.runtime.files import tensor_digest, user_format_errors
from makemore.runtime.memory import memory_limit_for
from makemore.runtime.sharding import gather_full
from makemore.settings import TrainConfig, parse
from makemore.settings.base import flatten
from makemore.tokenizers import tokenizer_from_dict
from makemore.training.assembly import make_trainer
from makemore.training.learners import is_sharded
from makemore.training.observers import Observer
from makemore.training.plan import Plan, make_plan, run_record
from makemore.training.planning import has_budget, make_model, tokenize_source
from makemore.training.request import TrainRequest, open_source, run_folder
from makemore.training.saving import read_state, save_weights
from makemore.training.trainer import Trainer


def resume(
    request: TrainRequest, observer: Observer, stop: Callable[[], bool], locks: contextlib.ExitStack
) -> tuple[Plan, Trainer, str]:
    """Resume an interrupted run: its plan, trainer and run id. The budget may change; most other settings are
    fixed. The run's lock is added to ``locks``.

    Raises:
        UserError: the run is missing or damaged, or its settings or text differ.
    """
    source = open_source(request)
    folder = RunDir(run_folder(request, source))
    config = _read_config(folder, request, observer, locks)
    requested, train = flatten(request.requested.model_dump(exclude_unset=True)), config.train
    for name in RESUMABLE_CHANGES & requested.keys():
        train = train.replace(**{name.rpartition(".")[2]: requested.pop(name)})
    saved = read_state(folder, config.run_id, is_sharded(train))
    plan = _make_resumed_plan(
        request,
        requested,
        source=source,
        folder=folder,
        config=config,
        train=train,
        saved=saved,
        observer=observer,
    )
    trainer = make_trainer(plan, stop)
    for problem in saved.problems:
        observer.note(f"{problem}; falling back to the previous state")
    with user_format_errors(folder.path / STATES):
        trainer.load_state_dict(saved.state)
    budgets = [(getattr(plan.train, k) or 0, getattr(config.train, k) or 0) for k in ("steps", "max_time")]
    trainer.reopen(any(new > old for new, old in budgets))
    if distributed.is_main():
        _record_changes(plan, config, trainer, observer)
        _restore_files(plan, trainer, saved, config.run_id, observer)
    _restore_weights(plan, trainer, config.run_id, observer)
    observer.note(f"resuming {config.model.name} at step {trainer.step:,}")
    return plan, trainer, config.run_id


def _read_config(
    folder: RunDir, request: TrainRequest, observer: Observer, locks: contextlib.ExitStack
) -> RunRecord:
    """Lock the run and read its config, on rank 0, for all ranks."""
    if distributed.is_main() and folder.is_occupied:
        locks.enter_context(folder.locked())
        for problem in folder.restore_from_states():
            observer.note(f"{problem}; restored from a saved state")
    config = distributed.broadcast(folder.read_config() if distributed.is_main() else None)
    assert config is not None
    name = config.model.name
    if request.model != name:
        raise UserError(f"the run's model is {name}, not {request.model}; resume it with --model {name}")
    return config


def _make_resumed_plan(
    request: TrainRequest,
    requested: Mapping[str, Any],
    source: Source,
    folder: RunDir,
    config: RunRecord,
    train: TrainConfig,
    saved: SavedState,
    observer: Observer,
) -> Plan:
    """The run's plan with the settings that may change. Raises UserError if others, or the text, differ."""
    kind = MODELS.get(request.model)
    with user_format_errors(folder.path / STATES):
        model_config = parse(kind.Config, {**kind.Config.legacy_defaults, **saved.state["settings"]}, "model")
        max_bytes = memory_limit_for(tree_leaves(saved.state["learner"]["model"]))
    if not (has_budget(train) or issubclass(kind, CountModel)):  # a single pass needs no budget
        raise UserError("the run has no training budget; add --steps or --max-time")
    require_same_settings(config.model_copy(update={"model": model_config, "train": train}), requested)
    data = distributed.broadcast(folder.read_tokenizer(config.run_id) if distributed.is_main() else {})
    with user_format_errors(folder.path / TOKENIZER):
        tokenizer = tokenizer_from_dict(data)
    other_text = UserError(
        f"{source.name} is not the text {folder.path} was trained on; resume with that text"
    )
    try:
        corpus = tokenize_source(source, config.corpus, tokenizer, observer)
    except UnusableTextError:
        raise other_text from None
    corpus = dataclasses.replace(corpus, reason="as recorded in the run")
    if corpus.digests != config.text.digests:
        raise other_text
    return make_plan(
        folder=folder,
        source=source,
        model=make_model(
            kind,
            model_config,
            tokenizer=corpus.tokenizer,
            seed=train.seed,
            document_ends=config.document_ends,
            max_bytes=max_bytes,
        ),
        tokenizer_spec=config.tokenizer,
        init_from=config.init_from,
        corpus=corpus,
        train=train,
        corpus_config=config.corpus,
        device=pick_device(train.runtime.device),
    )


def _how_to_continue(plan: Plan, trainer: Trainer) -> str:
    if isinstance(plan.model, CountModel):
        return "count models read the text once"
    if trainer.stopped_early:
        return "val stopped improving; to continue, raise the budget, and train.patience to stop later"
    budgets = (("--steps", plan.train.steps), ("--max-time", plan.train.max_time))
    return f"to continue, raise {' and '.join(flag for flag, budget in budgets if budget)}"


def _record_changes(plan: Plan, config: RunRecord, trainer: Trainer, observer: Observer) -> None:
    """Report changed settings and record them in the run's config, unless its budget is used up."""
    if trainer.finished:
        observer.note(f"the run ended at step {trainer.step:,}: {_how_to_continue(plan, trainer)}")
        if not trainer.stopped_early:
            return
    lines = describe_changes(config, run_record(plan))
    for line in lines:
        observer.note(line)
    if lines:
        resumed = (*config.resumed, Resumption(step=trainer.step, changes=tuple(lines)))
        plan.folder.write_config(config.model_copy(update={"train": plan.train, "resumed": resumed}))


def _restore_files(plan: Plan, trainer: Trainer, saved: SavedState, run_id: str, observer: Observer) -> None:
    """Restore metrics and line hashes to match the loaded state."""
    plan.folder.remove_temporaries()
    if problem := plan.folder.metrics.truncate(trainer.step, saved.metrics):
        observer.note(f"{problem}; keeping the readable lines")
    try:
        plan.folder.read_line_hashes(plan.folder.read_config())
    except UserError as error:
        observer.note(f"{error}; rebuilt from the text")
        seen_U = train_line_hashes(plan.corpus)
        if seen_U is not None:
            plan.folder.write_line_hashes(seen_U, run_id)


def _restore_weights(plan: Plan, trainer: Trainer, run_id: str, observer: Observer) -> None:
    """Restore the weights if they are damaged or not the best ones of the loaded state."""
    best = gather_full(trainer.best)
    if not (best and distributed.is_main()):
        return
    try:
        up_to_date = tensor_digest(plan.folder.read_model(run_id)) == tensor_digest(best)
    except UserError as error:
        observer.note(f"{error}; restored from the state")
        up_to_date = False
    if not up_to_date:
        save_weights(plan, best, run_id)


_SCHEDULE = "from here on the learning rate follows the new budget; a new run would give other results"


_ROUNDING = "results may differ by rounding from here on"


RESUMABLE_CHANGES = {
    "train.steps": _SCHEDULE,
    "train.max_time": _SCHEDULE,
    "train.runtime.device": _ROUNDING,
    "train.runtime.shard": _ROUNDING,
    "train.patience": "early stopping uses the new value from here on",
    "train.save_interval": "the weights are not affected",
    "train.on_divergence": "applies from here on",
}
"""Settings that may change on resume, and the effect of each change."""


def require_same_settings(saved: RunConfig, requested: Mapping[str, Any]) -> None:
    """Raise UserError if a requested setting, by dotted name, differs from the run's."""
    values = flatten(saved.model_dump())
    for name, value in requested.items():
        # ``auto`` agrees with any mode or split it could have resolved to.
        if name.startswith("corpus.") and value == "auto":
            continue
        if name in values and values[name] != value:
            raise UserError(
                f"{name} was {'none' if values[name] is None else values[name]}, not {value}; a resumed run "
                "keeps its settings, except budget, device and patience (use --overwrite to start a new run)"
            )


def describe_changes(before: RunRecord, now: RunRecord) -> list[str]:
    """Return one line per changed setting, with its effect."""
    old, new = flatten(before.model_dump()), flatten(now.model_dump())
    effects = RESUMABLE_CHANGES | {
        name: _ROUNDING
        for name in new
        if name.startswith(("environment.", "versions.")) and name != "environment.launch"
    }
    changed = {name: effect for name, effect in effects.items() if old.get(name) != new[name]}
    return [
        f"{re.sub('^(environment|versions)[.]', '', name)}: {old.get(name)} -> {new[name]}; {effect}"
        for name, effect in changed.items()
    ]
