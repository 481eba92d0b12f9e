"""Training steps by autograd, optionally compiled."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from makemore.errors import UserError
from makemore.models.base import LanguageModel
from makemore.models.layers.dropout import compile_options
from makemore.runtime import distributed
from makemore.runtime.device import (
    get_rng_state,
    is_out_of_memory,
    set_rng_state,
)
from makemore.settings import TrainConfig
from makemore.training.learners.gradient import GradientLearner
from makemore.types import IGNORE_INDEX, Batch, State


class AutogradLearner(GradientLearner):
    """Loss and gradients by autograd, optionally compiled. With several processes, gradients are summed while
    ``backward`` computes the next ones (Li et al. 2020, "PyTorch Distributed"), or by FSDP if sharded.
    """

    is_graphable = True

    def __init__(
        self, model: LanguageModel, config: TrainConfig, precision: torch.dtype, compiled: bool
    ) -> None:
        super().__init__(model, config, precision)
        if compiled:
            torch.compiler.reset()  # torch limits recompilations, across models
        compile_loss = compiled and not model.compile_blocks()
        options = compile_options(model.device)
        self._loss = torch.compile(self._eager_loss, options=options) if compile_loss else self._eager_loss
        self.compiled = compiled
        self.backward_all_reduces = distributed.world_size() > 1
        self._ddp: DistributedDataParallel | None = None
        if self.backward_all_reduces and not self.sharded:
            self._ddp = DistributedDataParallel(model, gradient_as_bucket_view=True)
            # Statistics are averaged after the step. (The argument is named differently by torch 2.13.)
            self._ddp.broadcast_buffers = False

    def _eager_loss(
        self, inputs_BT: Tensor, targets_BT: Tensor, count: Tensor, state: State | None
    ) -> tuple[Tensor, State | None]:
        """Nats summed over valid targets, divided once by ``count``."""
        with self.autocast():
            logits, state = (self._ddp or self.model)(inputs_BT, state, targets_BT != IGNORE_INDEX)
        total = F.cross_entropy(
            logits.float().flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
        )
        return total / count.clamp(min=1), state

    def backward(
        self, inputs_BT: Tensor, targets_BT: Tensor, count: Tensor, first: bool, last: bool
    ) -> Tensor:
        state, has_rows = self.carried_state, len(inputs_BT) > 0
        if not has_rows:  # the other ranks wait for this rank's gradients: compute a row without targets
            inputs_BT = inputs_BT.new_zeros(1, inputs_BT.shape[1])
            targets_BT = torch.full_like(inputs_BT, IGNORE_INDEX)
            state = state and self.model.init_state(*inputs_BT.shape)
        accumulating = self._ddp.no_sync() if self._ddp and not last else contextlib.nullcontext()
        with accumulating, distributed.peer_errors():
            loss, state = self._loss(inputs_BT, targets_BT, count, state)
            # The regularization depends on the weights only: add it once per step.
            regularization = self.model.regularization_loss() if first and distributed.is_main() else None
            total = loss if regularization is None else loss + regularization
            # DDP and FSDP average gradients over ranks; we need their sum.
            (total * distributed.world_size() if self.backward_all_reduces else total).backward()
        if state is not None and has_rows:
            self.carried_state = tuple(part.detach() for part in state)
        return loss.detach()

    def _compute_gradients(self, batches: Sequence[Batch], count: Tensor, step: int) -> Tensor:
        carried_state, device = self.carried_state, self.model.device
        recording = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        random = get_rng_state(device) if self.compiled and not recording else None
        try:
            return super()._compute_gradients(batches, count, step)
        except Exception as error:
            if random is None or isinstance(error, UserError) or is_out_of_memory(error):
                raise
            reason = next(iter(str(error).strip().splitlines()), "no reason given")[:120]
            self.compile_error = f"{type(error).__name__}: {reason}"
            self.note = f"compilation failed ({self.compile_error}); continuing without it"
        self.model.compile_blocks(False)
        # Redo the step with the same random numbers, so that they don't depend on when compilation failed.
        self._loss, self.compiled, self.carried_state = self._eager_loss, False, carried_state
        set_rng_state(random, device)
        self.model.zero_grad(set_to_none=True)
        return super()._compute_gradients(batches, count, step)
