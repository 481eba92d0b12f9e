"""Write a run's files during training: best weights, log and states to resume from."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from makemore.runs.directory import RunDir
from makemore.runs.states import SavedState
from makemore.runtime import distributed
from makemore.runtime.sharding import gather_full
from makemore.training.plan import Plan
from makemore.training.records import TrainRecord
from makemore.training.trainer import Trainer

MAX_SAVE_SHARE = 0.05
"""Part of the time that saving may take: large states are saved less often."""


def save_record(plan: Plan, trainer: Trainer, record: TrainRecord, run_id: str) -> None:
    """Write the best weights if they improved, a log line if there is a loss, and a state if it is due; every
    rank must call this."""
    if record.improved:
        save_weights(plan, trainer.best, run_id)
    # Records without a loss only mark progress; leaving them out keeps a resumed run's log the same.
    if distributed.is_main() and (record.loss is not None or record.val is not None):
        plan.folder.metrics.append(_metrics(record), sync=record.save)
    if record.save:
        started = time.perf_counter()
        plan.folder.write_state(trainer.step, trainer.state_dict(), run_id)
        seconds = distributed.all_reduce_max(time.perf_counter() - started)  # all ranks save together
        if interval := plan.train.save_interval:
            trainer.save_interval = max(interval, seconds / MAX_SAVE_SHARE)


def read_state(folder: RunDir, run_id: str, sharded: bool) -> SavedState:
    """Read the newest good state on every rank: its tensors come from rank 0 or, if ``sharded``, are mapped
    from their files, which every rank must then be able to read."""
    saved = folder.states.read_newest(run_id, mapped=sharded) if distributed.is_main() else None
    if not sharded:
        saved = distributed.broadcast(saved)
        assert saved is not None
        return saved
    name, run_id = distributed.broadcast((folder.states.newest and folder.states.newest.name, run_id))
    return saved or folder.states.read(folder.states.path / str(name), run_id, mapped=True)


def save_weights(plan: Plan, weights: Mapping[str, Tensor], run_id: str) -> None:
    """Write weights, and first any model settings that training has chosen; every rank must call this."""
    weights = gather_full(weights)
    if not distributed.is_main():
        return
    config = plan.folder.read_config()
    if config.model != plan.model.config:
        plan.folder.write_config(config.model_copy(update={"model": plan.model.config}))
    plan.folder.write_model(weights, run_id)


def _metrics(record: TrainRecord) -> dict[str, Any]:
    values = dataclasses.asdict(record)
    for name in ("improved", "save", "note"):
        values.pop(name)
    return {k: v for k, v in values.items() if v is not None}
