"""Training steps by gradients: precision, optimizers, carried state and data parallelism."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from makemore.models.base import LanguageModel
from makemore.runtime import distributed
from makemore.runtime.device import (
    has_fast_bfloat16,
    to_device,
)
from makemore.runtime.graphs import GraphedFunction, RecordingError
from makemore.runtime.sharding import full_tensor
from makemore.settings import TrainConfig
from makemore.training.learners.base import Learner, Metrics, count_targets
from makemore.training.learners.guard import FiniteGuard
from makemore.training.optimizers.ema import EMA
from makemore.training.optimizers.optimizer_set import OptimizerSet
from makemore.types import Batch, State

STATE_RESET_PROBABILITY = 0.02
"""Fraction of streams whose carried state is reset at each step."""


class GradientLearner(Learner):
    """Base of the gradient-trained learners: precision, optimizers, carried state, CUDA graphs."""

    is_graphable = False
    """Whether ``backward`` may be recorded in a CUDA graph, because it never waits for the device."""
    backward_all_reduces = False
    """Whether ``backward`` sums gradients over all ranks; they must then all call it, even without rows."""

    def __init__(self, model: LanguageModel, config: TrainConfig, precision: torch.dtype) -> None:
        super().__init__(model)
        self.config, self.precision = config, precision
        self.optimizers = OptimizerSet(
            model, config, torch.bfloat16 if has_fast_bfloat16(model.device) else torch.float32
        )
        self.ema = EMA(model, config.optimizer.ema) if config.optimizer.ema else None
        self.carried_state: State | None = None
        device = model.device
        self.finite_guard = FiniteGuard(device, skips=device.type == "cuda" and not self.sharded)
        self._graphed = self._make_graphed()

    @property
    def lr(self) -> float:
        return self.optimizers.lr

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == torch.float32:
            return super().autocast()
        return torch.autocast(self.model.device.type, self.precision)

    @abstractmethod
    def backward(
        self, inputs_BT: Tensor, targets_BT: Tensor, count: Tensor, first: bool, last: bool
    ) -> Tensor:
        """Accumulate a micro-batch's gradients in each parameter's ``grad``; returns its share of the loss.

        ``count``: valid targets of all micro-batches, () int64; ``first``: no gradients accumulated yet;
        ``last``: this is the step's last micro-batch.
        """

    def _prepare_state(self, batch: Batch, n_rows: int) -> None:
        """Set ``carried_state`` to the state before a micro-batch; ``n_rows``: rows of all ranks."""
        if self.config.data.loader != "streams":
            return
        if not batch.continues or self.carried_state is None:
            self.carried_state = self.model.init_state(*batch.inputs_BT.shape)
            return
        # Reset some rows at random: prompts start without context, too.
        cold_B = (torch.rand(n_rows) < STATE_RESET_PROBABILITY)[distributed.rank_slice(n_rows)]
        if not cold_B.any():
            return
        fresh = self.model.init_state(*batch.inputs_BT.shape)
        cold_B = to_device(cold_B, self.model.device)
        self.carried_state = tuple(
            torch.where(cold_B.view(-1, *[1] * (old.ndim - 1)), new, old)
            for new, old in zip(fresh, self.carried_state, strict=True)
        )

    def step(self, batches: Sequence[Batch], step: int, progress: float) -> Metrics:
        self.model.train()
        count = count_targets([batch.targets_BT for batch in batches])
        self.optimizers.set_lr(step, progress)
        self.finite_guard.start(step)
        updated = self._update_graphed(batches, count)
        if updated is None:
            updated = self._update(batches, to_device(count, self.model.device), step)
        if self.ema is not None:
            self.ema.update()
        return Metrics(*updated, count)

    def _update(self, batches: Sequence[Batch], count: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Update the weights; returns loss and gradient norm."""
        loss = self._compute_gradients(batches, count, step)
        self._all_reduce(loss, batches, count)
        norm = full_tensor(self.optimizers.clip())
        self.finite_guard.watch(loss, norm)
        self.optimizers.step(self.finite_guard.skip)
        return loss, norm

    def _make_graphed(self) -> GraphedFunction | None:
        """Prepare the update as a CUDA graph.

        Returns None where a step needs the CPU: to exchange gradients, or to reset the states of streams.
        """
        allowed = self.config.runtime.cuda_graph and self.is_graphable and distributed.world_size() == 1
        if not (allowed and self.optimizers.capturable) or self.config.data.loader == "streams":
            return None

        def update(count: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
            batches = [Batch(*pair) for pair in zip(tensors[::2], tensors[1::2], strict=True)]
            return self._update(batches, count, 0)

        return GraphedFunction(update, self.model.device)

    def _update_graphed(self, batches: Sequence[Batch], count: Tensor) -> tuple[Tensor, Tensor] | None:
        if self._graphed is None:
            return None
        tensors = [tensor for batch in batches for tensor in (batch.inputs_BT, batch.targets_BT)]
        try:
            loss, norm = self._graphed(count, *tensors)
        except RecordingError as error:
            self.note = f"the training step can't be a CUDA graph ({error}); continuing without"
            self._graphed = None
            self.model.zero_grad(set_to_none=True)
            return None
        return loss.clone(), norm.clone()

    def check(self) -> None:
        self.finite_guard.check()

    def _compute_gradients(self, batches: Sequence[Batch], count: Tensor, step: int) -> Tensor:
        """Accumulate gradients over this rank's rows of all micro-batches; returns its share of the loss."""
        losses: list[Tensor] = []
        for i, batch in enumerate(batches):
            n_rows = len(batch.inputs_BT)
            batch = self._rank_batch(batch)
            self._prepare_state(batch, n_rows)
            # A short batch leaves some ranks without rows.
            if len(batch.inputs_BT) or self.backward_all_reduces:
                with self._rank_seed(step, i):
                    first, last = not losses, i == len(batches) - 1
                    losses.append(self.backward(batch.inputs_BT, batch.targets_BT, count, first, last))
        if not losses:
            return torch.zeros((), device=self.model.device)
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def _rank_batch(self, batch: Batch) -> Batch:
        rows, device = distributed.rank_slice(len(batch.inputs_BT)), self.model.device
        inputs_BT, targets_BT = batch.inputs_BT[rows], batch.targets_BT[rows]
        return Batch(to_device(inputs_BT, device), to_device(targets_BT, device), batch.continues)

    @contextlib.contextmanager
    def _rank_seed(self, *step_and_part: int) -> Iterator[None]:
        """Seed each rank's random numbers (dropout) differently; a resumed run repeats them."""
        if distributed.world_size() == 1:
            yield
            return
        shared_state = torch.get_rng_state()
        seeds = np.random.SeedSequence([self.config.seed, *step_and_part, distributed.rank()])
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        try:
            yield
        finally:
            torch.set_rng_state(shared_state)

    def _all_reduce(self, loss: Tensor, batches: Sequence[Batch], count: Tensor) -> None:
        """Sum the loss, and gradients unless ``backward`` has, over all ranks; average running statistics,
        weighted by target counts."""
        if distributed.world_size() == 1:
            return
        for parameter in [] if self.backward_all_reduces else self.optimizers.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        n = count_targets([b.targets_BT[distributed.rank_slice(len(b.targets_BT))] for b in batches]).to(
            count
        )
        weight = torch.where(count > 0, n / count.clamp(min=1), 1 / distributed.world_size())
        running = [
            b for name, b in self.model.named_buffers() if name.rpartition(".")[2].startswith("running_")
        ]
        for buffer in running:
            buffer.mul_(weight)
        grads = [] if self.backward_all_reduces else [p.grad for p in self.optimizers.parameters]
        distributed.all_reduce_sum([loss, *grads, *running])

    def state_dict(self) -> dict[str, Any]:
        state = {**super().state_dict(), "optimizers": self.optimizers.state_dict()}
        state["carried"] = self._gather_carried()
        if self.ema is not None:
            state["average"] = self.ema.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.finite_guard.reset()
        self._graphed = self._make_graphed()  # a graph refers to the old optimizer states
        self.model.zero_grad(set_to_none=True)  # left by an unfinished step
        self.optimizers.load_state_dict(state["optimizers"])
        device = self.model.device
        self.carried_state = (
            tuple(t[distributed.rank_slice(len(t))].to(device) for t in state["carried"]) or None
        )
        if self.ema is not None:
            self.ema.load_state_dict(state["average"])

    def _gather_carried(self) -> list[Tensor]:
        """The carried state of all ranks' rows, on rank 0."""
        if distributed.world_size() == 1:
            return list(self.carried_state or ())
        local = [tensor.cpu() for tensor in self.carried_state or ()]
        return [torch.cat(parts) for parts in zip(*distributed.gather(local), strict=True)]
