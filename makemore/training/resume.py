"""Resume a run from its last good state, with the settings that may change."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch.utils._pytree import tree_leaves

from makemore.corpus.decoding import UnusableTextError
from makemore.corpus.source import Source
from makemore.errors import UserError
from makemore.models import MODELS
from makemore.models.base import CountModel
from makemore.runs.directory import CONFIG, STATES, TOKENIZER, RunDir
from makemore.runs.run import corpus_config_of
from makemore.runs.states import SavedState
from makemore.runs.training_lines import train_line_hashes
from makemore.runtime import distributed
from makemore.runtime.device import pick_device
from makemore.runtime.files import tensor_digest, user_format_errors
from makemore.runtime.memory import memory_limit_for
from makemore.runtime.sharding import gather_full
from makemore.settings import TrainConfig, current_name, replace_settings
from makemore.tokenizers import tokenizer_from_dict
from makemore.training.assembly import make_trainer
from makemore.training.observers import Observer
from makemore.training.plan import Plan, is_sharded, make_plan, run_config
from makemore.training.planning import has_budget, make_model, tokenize_source
from makemore.training.request import TrainRequest, open_source, requested_settings, run_folder
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
    MODELS.path(request.model)
    overrides = requested_settings(request)
    source = open_source(request)
    folder = RunDir(run_folder(request, source))
    config = _read_config(folder, request, observer, locks)
    changes = {k: overrides["train"].pop(k) for k in RESUMABLE_CHANGES if k in overrides["train"]}
    with user_format_errors(folder.path / CONFIG):
        old_train = replace_settings(TrainConfig(), config["train"], "train")
        train = replace_settings(old_train, changes, "train")
    saved = read_state(folder, config["run_id"], is_sharded(train))
    plan = _make_resumed_plan(
        request,
        overrides,
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
    budgets = [(getattr(plan.train, k) or 0, getattr(old_train, k) or 0) for k in ("steps", "max_time")]
    trainer.reopen(any(new > old for new, old in budgets))
    if distributed.is_main():
        _record_changes(plan, config, trainer, observer)
        _restore_files(plan, trainer, saved, config["run_id"], observer)
    _restore_weights(plan, trainer, config["run_id"], observer)
    observer.note(f"resuming at step {trainer.step:,}")
    return plan, trainer, config["run_id"]


def _read_config(
    folder: RunDir, request: TrainRequest, observer: Observer, locks: contextlib.ExitStack
) -> dict[str, Any]:
    """Lock the run and read its config, on rank 0, for all ranks."""
    if distributed.is_main() and folder.is_occupied:
        locks.enter_context(folder.locked())
        for problem in folder.restore_from_states():
            observer.note(f"{problem}; restored from a saved state")
    config = distributed.broadcast(folder.read_config() if distributed.is_main() else {})
    name = config["model"]["name"]
    if request.model != name:
        raise UserError(f"the run's model is {name}, not {request.model}; resume it with --model {name}")
    return config


def _make_resumed_plan(
    request: TrainRequest,
    overrides: dict[str, dict[str, Any]],
    source: Source,
    folder: RunDir,
    config: dict[str, Any],
    train: TrainConfig,
    saved: SavedState,
    observer: Observer,
) -> Plan:
    """The run's plan with the settings that may change. Raises UserError if others, or the text, differ."""
    kind = MODELS.get(request.model)
    with user_format_errors(folder.path / STATES):
        model_config = replace_settings(kind.Config(), saved.state["settings"], "model")
        max_bytes = memory_limit_for(tree_leaves(saved.state["learner"]["model"]))
    with user_format_errors(folder.path / CONFIG):
        corpus_config = corpus_config_of(config)
    if not (has_budget(train) or issubclass(kind, CountModel)):  # a single pass needs no budget
        raise UserError("the run has no training budget; add --steps or --max-time")
    require_same_tokenizer(request.tokenizer, config["tokenizer"])
    require_same_settings({"model": model_config, "train": train, "corpus": corpus_config}, overrides)
    data = distributed.broadcast(folder.read_tokenizer(config["run_id"]) if distributed.is_main() else {})
    with user_format_errors(folder.path / TOKENIZER):
        tokenizer = tokenizer_from_dict(data)
    other_text = UserError(
        f"{source.name} is not the text {folder.path} was trained on; resume with that text"
    )
    try:
        corpus = tokenize_source(source, corpus_config, tokenizer, observer)
    except UnusableTextError:
        raise other_text from None
    corpus = dataclasses.replace(corpus, reason="as recorded in the run")
    if corpus.digests != config["corpus"]["digests"]:
        raise other_text
    return make_plan(
        request=dataclasses.replace(request, tokenizer=config["tokenizer"]),
        folder=folder,
        source=source,
        model=make_model(
            kind, model_config, tokenizer=corpus.tokenizer, seed=train.seed, max_bytes=max_bytes
        ),
        corpus=corpus,
        train=train,
        corpus_config=corpus_config,
        device=pick_device(train.device),
    )


def _how_to_continue(plan: Plan, trainer: Trainer) -> str:
    if isinstance(plan.model, CountModel):
        return "count models read the text once"
    if trainer.stopped_early:
        return "val stopped improving; to continue, raise the budget, and train.patience to stop later"
    budgets = (("--steps", plan.train.steps), ("--max-time", plan.train.max_time))
    return f"to continue, raise {' and '.join(flag for flag, budget in budgets if budget)}"


def _record_changes(plan: Plan, config: dict[str, Any], trainer: Trainer, observer: Observer) -> None:
    """Report changed settings and record them in the run's config, unless its budget is used up."""
    if trainer.finished:
        observer.note(f"the run ended at step {trainer.step:,}: {_how_to_continue(plan, trainer)}")
        if not trainer.stopped_early:
            return
    lines = describe_changes(config, run_config(plan), plan.train)
    for line in lines:
        observer.note(line)
    if lines:
        earlier = config.get("resumed")
        history = [*(earlier if isinstance(earlier, list) else []), {"step": trainer.step, "changes": lines}]
        train = dataclasses.asdict(plan.train)
        plan.folder.write_config({**config, "train": train, "resumed": history})


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
    "steps": _SCHEDULE,
    "max_time": _SCHEDULE,
    "device": _ROUNDING,
    "shard": _ROUNDING,
    "patience": "early stopping uses the new value from here on",
    "save_interval": "the weights are not affected",
    "on_divergence": "applies from here on",
}
"""Training settings that may change on resume, and the effect of each change."""


ENVIRONMENT_KEYS = ("device", "precision", "compiled", "native", "threads", "processes", "machine")
"""Keys of a run's config that describe its environment, besides ``versions``."""


def require_same_settings(saved: Mapping[str, Any], requested: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise UserError if a requested setting differs from the run's.

    ``saved`` holds the run's settings by section, with permitted changes already applied.
    """
    for section, settings in saved.items():
        for key, value in requested[section].items():
            # ``auto`` agrees with any mode or split it could have resolved to.
            if section == "corpus" and value == "auto":
                continue
            if replace_settings(settings, {key: value}, section) != settings:
                raise UserError(
                    f"{section}.{key} was {getattr(settings, current_name(section, key))}, not {value}; "
                    "a resumed run keeps its settings (use --overwrite to start a new run)"
                )


def require_same_tokenizer(requested: str | None, saved: str) -> None:
    """Raise UserError if a tokenizer other than the run's is requested."""
    if requested not in (None, saved):
        raise UserError(
            f"the run's tokenizer is {saved}, not {requested}; a resumed run keeps its tokenizer "
            "(use --overwrite to start a new run)"
        )


def describe_changes(before: Mapping[str, Any], now: Mapping[str, Any], train: TrainConfig) -> list[str]:
    """Describe each change from a run's saved config to the current one, with its effect, one line each."""
    saved = before["train"]
    lines = [
        f"train.{name}: {saved.get(name)} -> {value}; {RESUMABLE_CHANGES[name]}"
        for name, value in dataclasses.asdict(train).items()
        if name in RESUMABLE_CHANGES and name in saved and saved[name] != value
    ]
    lines += [
        f"{name}: {before.get(name)} -> {now[name]}; {_ROUNDING}"
        for name in ENVIRONMENT_KEYS
        if before.get(name) != now[name]
    ]
    versions = before.get("versions")
    versions = versions if isinstance(versions, dict) else {}
    return lines + [
        f"{name} {versions.get(name)} -> {version}; {_ROUNDING}"
        for name, version in now["versions"].items()
        if versions.get(name) != version
    ]
