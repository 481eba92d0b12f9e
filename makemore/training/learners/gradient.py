"""One training step, by autograd, hand-written gradients or counting."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from makemore.errors import UserError
from makemore.models.base import CountModel, LanguageModel, ManualModel
from makemore.models.count import Count
from makemore.models.layers.dropout import compile_options
from makemore.runtime import distributed as parallel
from makemore.runtime.device import (
    get_rng_state,
    has_fast_bfloat16,
    is_out_of_memory,
    set_rng_state,
    to_device,
)
from makemore.runtime.sharding import full_tensor, gather_full, is_sharded, shard_like
from makemore.settings import TrainConfig
from makemore.training.kernels import GradientKernel
from makemore.training.learners.guard import FiniteGuard
from makemore.training.optimizers.optim import EMA, OptimizerSet
from makemore.types import IGNORE_INDEX, Batch, State

STATE_RESET_PROBABILITY = 0.02
"""Fraction of streams whose carried state is reset at each step."""


class Metrics(NamedTuple):
    """A step's mean loss (nats per valid target), gradient norm and number of valid targets.

    0-dim tensors on the model's device: reading one synchronises.
    """

    loss: Tensor | None
    grad_norm: Tensor | None
    tokens: Tensor


class Learner(ABC):
    """Trains a model one step at a time."""

    note: str = ""
    """One-line message for the user, such as why compilation failed."""
    precision: torch.dtype = torch.float32
    """Dtype of matrix products."""
    compiled: bool = False
    compile_error: str = ""
    """Why compilation failed, if it did."""
    ema: EMA | None = None
    """EMA of the weights, if one is kept."""
    nats: Callable[[Tensor, Tensor], float] | None = None
    """Summed nats of targets given inputs, if there is a faster way than ``forward``."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.sharded = is_sharded(model)

    @abstractmethod
    def step(self, batches: Sequence[Batch], step: int, progress: float) -> Metrics:
        """Update on one batch, split into micro-batches; equivalent to one step on all their tokens.

        ``progress`` is the fraction of the budget used, in [0, 1]. If the loss or a gradient isn't finite, no
        update is made and NonFiniteError is raised, here or by ``check``.
        """

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Context manager that sets the model's compute precision."""
        return contextlib.nullcontext()

    def check(self) -> None:  # noqa: B027 - counts are always finite
        """Raise NonFiniteError if a step's update was skipped; may synchronise with the device."""

    def finish(self) -> None:  # noqa: B027 - only counting needs it
        """Finish training after the last step."""

    def weights(self) -> dict[str, Tensor]:
        """The model's full state dict; if sharded, every rank must call this at once."""
        return gather_full(self.model.state_dict()) if self.sharded else self.model.state_dict()

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.weights()}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Load a full state dict, as returned by ``weights``."""
        local = self.model.state_dict() if self.sharded else {}
        self.model.load_state_dict({name: shard_like(t, local.get(name, t)) for name, t in weights.items()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.load_weights(state["model"])


def count_targets(targets: Sequence[Tensor]) -> Tensor:
    """Number of valid targets (not IGNORE_INDEX), () int64, on their device."""
    counts = [(targets_BT != IGNORE_INDEX).sum() for targets_BT in targets]
    return counts[0] if len(counts) == 1 else torch.stack(counts).sum()


class CountLearner(Learner):
    """Counts each batch once; ``held_out`` returns val batches, on which settings are chosen at the end."""

    model: CountModel

    def __init__(self, model: CountModel, held_out: Callable[[], Iterable[Batch]]) -> None:
        super().__init__(model)
        self.held_out = held_out

    def step(self, batches: Sequence[Batch], step: int, progress: float) -> Metrics:
        for batch in batches:
            if parallel.world_size() == 1:
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
        if rows >= parallel.world_size():
            row_slice, time_slice = parallel.rank_slice(rows), slice(0, length)
        else:
            row_slice, time_slice = slice(0, rows), parallel.rank_slice(length)
        inputs_BL = inputs_BL[row_slice, time_slice.start : n_context + time_slice.stop]
        targets_BT = F.pad(batch.targets_BT[row_slice, time_slice], (n_context, 0), value=IGNORE_INDEX)
        model.count_batch(Batch(inputs_BL, targets_BT))
        model.ends = ends_BL

    def finish(self) -> None:
        if parallel.world_size() > 1:
            tables = self.state_dict()["model"]
            if not parallel.is_main():
                return
            self.model.load_state_dict(tables)
        self.model.finish(self.held_out())

    def state_dict(self) -> dict[str, Any]:
        """The counts of all ranks, summed on rank 0."""
        state = super().state_dict()
        if parallel.world_size() == 1:
            return state
        total, *others = parallel.gather(self._count_model().table) or [self._count_model().table]
        for table in others:
            total = total.merge(table)
        for kind, levels in (("keys", total.keys), ("counts", total.counts)):
            state["model"].update({f"{kind}_{n}": torch.from_numpy(a) for n, a in enumerate(levels, 1)})
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if parallel.is_main():
            super().load_state_dict(state)
        else:  # rank 0 holds all counts so far
            self._count_model().ends = state["model"]["ends"].to(self.model.device)

    def _count_model(self) -> Count:
        if not isinstance(self.model, Count):
            raise UserError("this model can't train in several processes; start it without torchrun")
        return self.model


class GradientLearner(Learner):
    """Base of the gradient-trained learners: precision, optimizers, carried state."""

    def __init__(self, model: LanguageModel, config: TrainConfig, precision: torch.dtype) -> None:
        super().__init__(model)
        self.config, self.precision = config, precision
        self.optimizers = OptimizerSet(
            model, config, torch.bfloat16 if has_fast_bfloat16(model.device) else torch.float32
        )
        self.ema = EMA(model, config.ema) if config.ema else None
        self.carried_state: State | None = None
        device = model.device
        self.finite_guard = FiniteGuard(device, skips=device.type == "cuda" and not self.sharded)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == torch.float32:
            return super().autocast()
        return torch.autocast(self.model.device.type, self.precision)

    @abstractmethod
    def backward(self, inputs_BT: Tensor, targets_BT: Tensor, count: Tensor, first: bool) -> Tensor:
        """Accumulate a micro-batch's gradients in each parameter's ``grad``; returns its share of the loss.

        ``count``: valid targets of all micro-batches, () int64; ``first``: no gradients accumulated yet.
        """

    def _prepare_state(self, batch: Batch, n_rows: int) -> None:
        """Set ``carried_state`` to the state before a micro-batch; ``n_rows``: rows of all ranks."""
        if self.config.loader != "streams":
            return
        if not batch.continues or self.carried_state is None:
            self.carried_state = self.model.init_state(*batch.inputs_BT.shape)
            return
        # Reset some rows at random: prompts start without context, too.
        cold_B = (torch.rand(n_rows) < STATE_RESET_PROBABILITY)[parallel.rank_slice(n_rows)]
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
        count = to_device(count_targets([batch.targets_BT for batch in batches]), self.model.device)
        loss = torch.zeros((), device=self.model.device)
        try:
            loss = self._compute_gradients(batches, count, step)
        finally:
            # Also after an error: the other ranks wait in the all-reduce.
            self._all_reduce(loss, batches, count)
        norm = self.optimizers.clip()
        self.finite_guard.watch(step, loss, full_tensor(norm))
        self.optimizers.step(step, progress, self.finite_guard.skip)
        if self.ema is not None:
            self.ema.update()
        return Metrics(loss, norm, count)

    def check(self) -> None:
        self.finite_guard.check()

    def _compute_gradients(self, batches: Sequence[Batch], count: Tensor, step: int) -> Tensor:
        """Accumulate gradients over this rank's rows of all micro-batches; returns its share of the loss."""
        losses: list[Tensor] = []
        for i, batch in enumerate(batches):
            n_rows = len(batch.inputs_BT)
            batch = self._rank_batch(batch)
            self._prepare_state(batch, n_rows)
            if len(batch.inputs_BT):  # a short batch leaves some ranks without rows
                with self._rank_seed(step, i):
                    losses.append(self.backward(batch.inputs_BT, batch.targets_BT, count, first=not losses))
        if not losses:
            return torch.zeros((), device=self.model.device)
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def _rank_batch(self, batch: Batch) -> Batch:
        rows, device = parallel.rank_slice(len(batch.inputs_BT)), self.model.device
        inputs_BT, targets_BT = batch.inputs_BT[rows], batch.targets_BT[rows]
        if self.sharded and not len(inputs_BT):
            # The other ranks need this rank's weight shards: compute a row without valid targets.
            inputs_BT, targets_BT = batch.inputs_BT[:1], torch.full_like(batch.targets_BT[:1], IGNORE_INDEX)
        return Batch(to_device(inputs_BT, device), to_device(targets_BT, device), batch.continues)

    @contextlib.contextmanager
    def _rank_seed(self, *step_and_part: int) -> Iterator[None]:
        """Seed each rank's random numbers (dropout) differently; a resumed run repeats them."""
        if parallel.world_size() == 1:
            yield
            return
        shared_state = torch.get_rng_state()
        seeds = np.random.SeedSequence([self.config.seed, *step_and_part, parallel.rank()])
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        try:
            yield
        finally:
            torch.set_rng_state(shared_state)

    def _all_reduce(self, loss: Tensor, batches: Sequence[Batch], count: Tensor) -> None:
        """Sum loss and gradients over all ranks; average running statistics, weighted by target counts."""
        if parallel.world_size() == 1:
            return
        if self.sharded:  # FSDP reduces gradients during backward
            parallel.all_reduce_sum([loss])
            return
        for parameter in self.optimizers.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        n = count_targets([b.targets_BT[parallel.rank_slice(len(b.targets_BT))] for b in batches]).to(count)
        weight = torch.where(count > 0, n / count.clamp(min=1), 1 / parallel.world_size())
        running = [
            b for name, b in self.model.named_buffers() if name.rpartition(".")[2].startswith("running_")
        ]
        for buffer in running:
            buffer.mul_(weight)
        grads = [p.grad for p in self.optimizers.parameters if p.grad is not None]
        parallel.all_reduce_sum([loss, *grads, *running])

    def state_dict(self) -> dict[str, Any]:
        state = {**super().state_dict(), "optimizers": self.optimizers.state_dict()}
        state["carried"] = self._gather_carried()
        if self.ema is not None:
            state["average"] = self.ema.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.finite_guard.reset()
        self.model.zero_grad(set_to_none=True)  # left by an unfinished step
        self.optimizers.load_state_dict(state["optimizers"])
        device = self.model.device
        self.carried_state = (
            tuple(t[parallel.rank_slice(len(t))].to(device) for t in state["carried"]) or None
        )
        if self.ema is not None:
            self.ema.load_state_dict(state["average"])

    def _gather_carried(self) -> list[Tensor]:
        """The carried state of all ranks' rows, on rank 0."""
        if parallel.world_size() == 1:
            return list(self.carried_state or ())
        local = [tensor.cpu() for tensor in self.carried_state or ()]
        return [torch.cat(parts) for parts in zip(*parallel.gather(local), strict=True)]


class AutogradLearner(GradientLearner):
    """Loss and gradients by autograd, optionally compiled."""

    def __init__(
        self, model: LanguageModel, config: TrainConfig, precision: torch.dtype, compiled: bool
    ) -> None:
        super().__init__(model, config, precision)
        if compiled:
            torch.compiler.reset()  # torch recompiles a function a few times only, earlier models included
        compile_loss = compiled and not model.compile_blocks()
        options = compile_options(model.device)
        self._loss = torch.compile(self._eager_loss, options=options) if compile_loss else self._eager_loss
        self.compiled = compiled

    def _eager_loss(
        self, inputs_BT: Tensor, targets_BT: Tensor, count: Tensor, state: State | None
    ) -> tuple[Tensor, State | None]:
        """Nats summed over valid targets, divided once by ``count``."""
        with self.autocast():
            logits, state = self.model(inputs_BT, state, targets_BT != IGNORE_INDEX)
        total = F.cross_entropy(
            logits.float().flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
        )
        return total / count.clamp(min=1), state

    def backward(self, inputs_BT: Tensor, targets_BT: Tensor, count: Tensor, first: bool) -> Tensor:
        loss, state = self._loss(inputs_BT, targets_BT, count, self.carried_state)
        # The penalty depends on the weights only: add it once per step.
        penalty = self.model.regularization_loss() if first and parallel.is_main() else None
        total = loss if penalty is None else loss + penalty
        # FSDP averages gradients over ranks; we need their sum.
        (total * parallel.world_size() if self.sharded else total).backward()
        if state is not None:
            self.carried_state = tuple(part.detach() for part in state)
        return loss.detach()

    def _compute_gradients(self, batches: Sequence[Batch], count: Tensor, step: int) -> Tensor:
        carried_state, device = self.carried_state, self.model.device
        random = get_rng_state(device) if self.compiled else None
        try:
            return super()._compute_gradients(batches, count, step)
        except Exception as error:
            if random is None or is_out_of_memory(error):
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


class ManualLearner(GradientLearner):
    """Gradients from a hand-written backward pass, the model's own or in C, without an autograd graph."""

    def __init__(
        self,
        model: LanguageModel,
        config: TrainConfig,
        precision: torch.dtype,
        gradient_source: ManualModel | GradientKernel,
    ) -> None:
        super().__init__(model, config, precision)
        self.gradient_source = gradient_source
        self.nats = None if isinstance(gradient_source, ManualModel) else gradient_source.nats

    @torch.no_grad()
    def backward(self, inputs_BT: Tensor, targets_BT: Tensor, count: Tensor, first: bool) -> Tensor:
        loss, grads = self.gradient_source.loss_and_grads(inputs_BT, targets_BT)
        assert not loss.requires_grad
        share = count_targets([targets_BT]) / count.clamp(min=1)
        for name, parameter in self.model.named_parameters():
            grad, accumulated = grads[name] * share, None if first else parameter.grad
            parameter.grad = grad if accumulated is None else accumulated + grad
        return loss * share


def make_learner(
    model: LanguageModel,
    config: TrainConfig,
    precision: torch.dtype,
    compiled: bool,
    held_out: Callable[[], Iterable[Batch]] = tuple,
    native: GradientKernel | None = None,
) -> Learner:
    """Choose a model's learner; ``native``: the model's C implementation, used in place of autograd."""
    if isinstance(model, CountModel):
        return CountLearner(model, held_out)
    gradient_source = model if isinstance(model, ManualModel) else native
    if gradient_source is not None:
        return ManualLearner(model, config, precision, gradient_source)
    return AutogradLearner(model, config, precision, compiled)
