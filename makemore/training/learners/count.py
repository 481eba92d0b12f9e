"""Training by counting."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from makemore.errors import UserError
from makemore.models.base import CountModel
from makemore.models.count import Count, table_tensors
from makemore.models.ngrams.builder import merge_tables
from makemore.runtime import distributed
from makemore.training.learners.base import Learner, Metrics, count_targets
from makemore.types import IGNORE_INDEX, Batch


class CountLearner(Learner):
    """Trains a count model in one pass; ``held_out`` returns the val batches used to choose its settings."""

    model: CountModel

    def __init__(self, model: CountModel, held_out: Callable[[], Iterable[Batch]]) -> None:
        super().__init__(model)
        self.held_out = held_out
        self._merged = distributed.world_size() == 1
        """Whether rank 0's model has the counts of all ranks."""

    def step(self, batches: Sequence[Batch], step: int, progress: float) -> Metrics:
        for batch in batches:
            if distributed.world_size() == 1:
                self.model.count_batch(batch)
            else:
                self._observe_rank_part(batch)
        return Metrics(None, None, count_targets([batch.targets_BT for batch in batches]))

    def _observe_rank_part(self, batch: Batch) -> None:
        """Observe this rank's rows or, with fewer rows than ranks, its columns; ``ends`` covers all rows."""
        model = self._count_model()
        context_BL = model.ends if batch.continues else model.init_state(len(batch.inputs_BT), 0)[0]
        inputs_BL = torch.cat([context_BL, batch.inputs_BT.to(model.device)], dim=1)
        n_context, (rows, length) = context_BL.shape[1], batch.inputs_BT.shape
        ends_BL = inputs_BL[:, inputs_BL.shape[1] - n_context :].clone()
        if rows >= distributed.world_size():
            row_slice, time_slice = distributed.rank_slice(rows), slice(0, length)
        else:
            row_slice, time_slice = slice(0, rows), distributed.rank_slice(length)
        inputs_BL = inputs_BL[row_slice, time_slice.start : n_context + time_slice.stop]
        targets_BT = F.pad(batch.targets_BT[row_slice, time_slice], (n_context, 0), value=IGNORE_INDEX)
        model.count_batch(Batch(inputs_BL, targets_BT))
        model.ends = ends_BL

    def finish(self) -> None:
        if not self._merged:
            tables = self.state_dict()["model"]
            self._merged = True
            if not distributed.is_main():
                return
            self.model.load_state_dict(tables)
        self.model.finish(self.held_out())

    def state_dict(self) -> dict[str, Any]:
        """The counts of all ranks, summed on rank 0."""
        state = super().state_dict()
        if self._merged:
            return state
        total, *others = distributed.gather(self._count_model().table) or [self._count_model().table]
        for table in others:
            total = merge_tables(total, table, self._count_model().max_ngrams)
        state["model"].update(table_tensors(total))
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if distributed.is_main():
            super().load_state_dict(state)
        else:  # rank 0 holds all counts so far
            self._count_model().ends = state["model"]["ends"].to(self.model.device)

    def _count_model(self) -> Count:
        if not isinstance(self.model, Count):
            raise UserError("this model can't train in several processes; start it without torchrun")
        return self.model
