"""Write a run's files during training: best weights, log and states to resume from."""

from __future__ import annotations

import dataclasses
from typing import Any

from makemore.training.plan import Plan
from makemore.training.records import TrainRecord
from makemore.training.trainer import Trainer


def save_record(
    plan: Plan, trainer: Trainer, record: TrainRecord, state: dict[str, Any] | None, run_id: str
) -> None:
    """Write the best weights if they improved, a log line if there is a loss, and ``state`` if given."""
    if record.improved:
        save_best(plan, trainer, run_id)
    # Records without a loss only mark progress; leaving them out keeps a resumed run's log the same.
    if record.loss is not None or record.val is not None:
        plan.folder.metrics.append(_metrics(record), sync=state is not None)
    if state is not None:
        plan.folder.write_state(trainer.step, state, run_id)


def save_best(plan: Plan, trainer: Trainer, run_id: str) -> None:
    """Write the best weights so far, and first any model settings that training has chosen."""
    config = plan.folder.read_config()
    if config.model != plan.model.config:
        plan.folder.write_config(config.model_copy(update={"model": plan.model.config}))
    plan.folder.write_model(trainer.best, run_id)


def _metrics(record: TrainRecord) -> dict[str, Any]:
    values = dataclasses.asdict(record)
    for name in ("improved", "save", "note"):
        values.pop(name)
    return {k: v for k, v in values.items() if v is not None}
