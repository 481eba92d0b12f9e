"""What a run keeps while it trains: the best weights, the log, states to resume from."""

from __future__ import annotations

import dataclasses
from typing import Any

from makemore.training.planning import Plan
from makemore.training.trainer import Record, Trainer


def keep(plan: Plan, trainer: Trainer, record: Record, state: dict[str, Any] | None, run_id: str) -> None:
    """Write what a record brings: weights where they are the best yet, a line of the log, a state."""
    if record.improved:
        keep_best(plan, trainer, run_id)
    # What only says that a step has been is not logged: resuming goes on as if undisturbed.
    if record.loss is not None or record.val is not None:
        plan.folder.append_metrics(_metrics(record), sync=state is not None)
    if state is not None:
        plan.folder.write_state(trainer.step, state, run_id)


def keep_best(plan: Plan, trainer: Trainer, run_id: str) -> None:
    """The best weights so far, after the settings that training itself has chosen."""
    config = plan.folder.read_config()
    settings = dataclasses.asdict(plan.model.config)
    if config["model"]["settings"] != settings:
        plan.folder.write_config({**config, "model": {"name": plan.model_name, "settings": settings}})
    plan.folder.write_model(trainer.best, run_id)


def _metrics(record: Record) -> dict[str, Any]:
    kept = dataclasses.asdict(record)
    for name in ("improved", "save", "note"):
        kept.pop(name)
    return {k: v for k, v in kept.items() if v is not None}
