"""One training step, three ways: autograd, hand-written backprop, counting."""

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
    has_fast_bfloat16,
    is_out_of_memory,
    random_state,
    restore_random,
    to_device,
)
from makemore.runtime.sharding import cut_like, is_sharded, on_all, whole
from makemore.settings import TrainConfig
from makemore.training.kernels import GradientKernel
from makemore.training.learners.guard import Guard
from makemore.training.optimizers.optim import Average, Optimizers
from makemore.types import IGNORE_INDEX, Batch, State

COLD_STARTS = 0.02
"""Share of streams whose carried state is dropped, each step."""


class Metrics(NamedTuple):
    """What a step says: mean nats per valid target, the gradient's norm, valid targets.

    0-dim tensors, which stay where they are: reading one waits for the device.
    """

    loss: Tensor | None
    grad_norm: Tensor | None
    tokens: Tensor


class Learner(ABC):
    """Changes a model by one step at a time."""

    note: str = ""
    """One line worth telling the user, such as why compiling was given up."""
    precision: torch.dtype = torch.float32
    """Of matrix products."""
    compiled: bool = False
    not_compiled: str = ""
    """Why compiling was given up, where it was."""
    average: Average | None = None
    """Of the weights, where one is kept."""
    nats: Callable[[Tensor, Tensor], float] | None = None
    """Of targets given inputs, summed, where there is a faster way than ``forward``."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.sharded = is_sharded(model)

    @abstractmethod
    def step(self, batches: Sequence[Batch], step: int, progress: float) -> Metrics:
        """Learn from one batch, which comes in parts: the result is that of all their tokens at once.

        ``progress``: the share of the budget used, in [0, 1]. Raises NotFinite in place of an update from
        a loss or a gradient that is no finite number, at once or when ``check`` is asked.
        """

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision that the model computes at."""
        return contextlib.nullcontext()

    def check(self) -> None:  # noqa: B027 - counts are always finite
        """Raises NotFinite where a step's update was left out; this may wait for the device."""

    def finish(self) -> None:  # noqa: B027 - only counting has something to finish
        """All of train has been seen."""

    def weights(self) -> dict[str, Tensor]:
        """The model's state; of a sharded model all processes must ask at once."""
        return whole(self.model.state_dict()) if self.sharded else self.model.state_dict()

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.weights()}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """What ``weights`` gave."""
        own = self.model.state_dict() if self.sharded else {}
        self.model.load_state_dict({name: cut_like(t, own.get(name, t)) for name, t in weights.items()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.load_weights(state["model"])


def count_targets(targets: Sequence[Tensor]) -> Tensor:
    """How many targets count, () int64, on their device."""
    counts = [(part != IGNORE_INDEX).sum() for part in targets]
    return counts[0] if len(counts) == 1 else torch.stack(counts).sum()


class CountLearner(Learner):
    """Observes each batch once; ``held_out`` gives val's batches, for settings chosen on them."""

    model: CountModel

    def __init__(self, model: CountModel, held_out: Callable[[], Iterable[Batch]]) -> None:
        super().__init__(model)
        self.held_out = held_out

    def step(self, batches: Sequence[Batch], step: int, progress: float) -> Metrics:
        for batch in batches:
            if parallel.size() == 1:
                self.model.observe(batch)
            else:
                self._observe_share(batch)
        return Metrics(None, None, count_targets([batch.targets_BT for batch in batches]))

    def _observe_share(self, batch: Batch) -> None:
        """This process's rows, or its stretch of them where they are few; ``ends`` are of all rows."""
        model = self._ngrams()
        before_BL = model.ends if batch.continues else model.init_state(len(batch.inputs_BT), 0)[0]
        inputs_BL = torch.cat([before_BL, batch.inputs_BT.to(model.device)], dim=1)
        lead, (rows, length) = before_BL.shape[1], batch.inputs_BT.shape
        ends_BL = inputs_BL[:, inputs_BL.shape[1] - lead :].clone()
        if rows >= parallel.size():
            which, when = parallel.own_rows(rows), slice(0, length)
        else:
            which, when = slice(0, rows), parallel.own_rows(length)
        inputs_BL = inputs_BL[which, when.start : lead + when.stop]
        targets_BT = F.pad(batch.targets_BT[which, when], (lead, 0), value=IGNORE_INDEX)
        model.observe(Batch(inputs_BL, targets_BT))
        model.ends = ends_BL

    def finish(self) -> None:
        if parallel.size() > 1:
            tables = self.state_dict()["model"]
            if not parallel.is_main():
                return
            self.model.load_state_dict(tables)
        self.model.finish(self.held_out())

    def state_dict(self) -> dict[str, Any]:
        """The counts of all processes, in the first one."""
        state = super().state_dict()
        if parallel.size() == 1:
            return state
        total, *others = parallel.gather(self._ngrams().table) or [self._ngrams().table]
        for table in others:
            total = total.merge(table)
        for kind, levels in (("keys", total.keys), ("counts", total.counts)):
            state["model"].update({f"{kind}_{n}": torch.from_numpy(a) for n, a in enumerate(levels, 1)})
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if parallel.is_main():
            super().load_state_dict(state)
        else:  # the counts so far are the first process's
            self._ngrams().ends = state["model"]["ends"].to(self.model.device)

    def _ngrams(self) -> Count:
        if not isinstance(self.model, Count):
            raise UserError("only count's tables can be counted by several processes: train in one")
        return self.model


class GradientLearner(Learner):
    """What the two gradient learners share: precision, optimizers, carried state."""

    def __init__(self, model: LanguageModel, config: TrainConfig, precision: torch.dtype) -> None:
        super().__init__(model)
        self.config, self.precision = config, precision
        self.optimizers = Optimizers(
            model, config, torch.bfloat16 if has_fast_bfloat16(model.device) else torch.float32
        )
        self.average = Average(model, config.ema) if config.ema else None
        self.carried: State | None = None
        device = model.device
        self.guard = Guard(device, skips=device.type == "cuda" and not self.sharded)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == torch.float32:
            return super().autocast()
        return torch.autocast(self.model.device.type, self.precision)

    @abstractmethod
    def backward(self, inputs_BT: Tensor, targets_BT: Tensor, count: Tensor, first: bool) -> Tensor:
        """Add a part's share to every parameter's ``grad``; returns its share of the loss.

        ``count``: the valid targets of all parts, () int64; ``first``: no gradients stand yet.
        """

    def _carry(self, batch: Batch, rows: int) -> None:
        """Bring the state to where a part begins; ``rows``: those of all processes."""
        if self.config.loader != "streams":
            return
        if not batch.continues or self.carried is None:
            self.carried = self.model.init_state(*batch.inputs_BT.shape)
            return
        # Now and then a row begins anew: a prompt has no past either.
        cold_B = (torch.rand(rows) < COLD_STARTS)[parallel.own_rows(rows)]
        if not cold_B.any():
            return
        fresh = self.model.init_state(*batch.inputs_BT.shape)
        cold_B = to_device(cold_B, self.model.device)
        self.carried = tuple(
            torch.where(cold_B.view(-1, *[1] * (old.ndim - 1)), new, old)
            for new, old in zip(fresh, self.carried, strict=True)
        )

    def step(self, batches: Sequence[Batch], step: int, progress: float) -> Metrics:
        self.model.train()
        count = to_device(count_targets([batch.targets_BT for batch in batches]), self.model.device)
        loss = torch.zeros((), device=self.model.device)
        try:
            loss = self._gradients(batches, count, step)
        finally:
            # After an error too: the other processes wait for it.
            self._add_up(loss, batches, count)
        norm = self.optimizers.clip()
        self.guard.watch(step, loss, on_all(norm))
        self.optimizers.step(step, progress, self.guard.skip)
        if self.average is not None:
            self.average.update()
        return Metrics(loss, norm, count)

    def check(self) -> None:
        self.guard.check()

    def _gradients(self, batches: Sequence[Batch], count: Tensor, step: int) -> Tensor:
        """Every parameter's ``grad`` over this process's rows of all parts; returns its share of the loss."""
        losses: list[Tensor] = []
        for i, batch in enumerate(batches):
            rows = len(batch.inputs_BT)
            batch = self._own(batch)
            self._carry(batch, rows)
            if len(batch.inputs_BT):  # a short batch has no rows for some processes
                with self._own_randomness(step, i):
                    losses.append(self.backward(batch.inputs_BT, batch.targets_BT, count, first=not losses))
        if not losses:
            return torch.zeros((), device=self.model.device)
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def _own(self, batch: Batch) -> Batch:
        """This process's rows, on its device."""
        own, device = parallel.own_rows(len(batch.inputs_BT)), self.model.device
        inputs_BT, targets_BT = batch.inputs_BT[own], batch.targets_BT[own]
        if self.sharded and not len(inputs_BT):
            # Those who have rows need its part of the weights all the same.
            inputs_BT, targets_BT = batch.inputs_BT[:1], torch.full_like(batch.targets_BT[:1], IGNORE_INDEX)
        return Batch(to_device(inputs_BT, device), to_device(targets_BT, device), batch.continues)

    @contextlib.contextmanager
    def _own_randomness(self, *place: int) -> Iterator[None]:
        """Other random numbers (dropout) in every process, which a resumed run draws again."""
        if parallel.size() == 1:
            yield
            return
        shared = torch.get_rng_state()
        seeds = np.random.SeedSequence([self.config.seed, *place, parallel.rank()])
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        try:
            yield
        finally:
            torch.set_rng_state(shared)

    def _add_up(self, loss: Tensor, batches: Sequence[Batch], count: Tensor) -> None:
        """Loss and gradients over all processes, in one message. Running statistics are averaged, each
        process's by its share of the targets, for each has seen those of its rows only."""
        if parallel.size() == 1:
            return
        if self.sharded:  # its gradients are added up as they come
            parallel.add_up([loss])
            return
        for parameter in self.optimizers.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        own = count_targets([b.targets_BT[parallel.own_rows(len(b.targets_BT))] for b in batches]).to(count)
        share = torch.where(count > 0, own / count.clamp(min=1), 1 / parallel.size())
        running = [
            b for name, b in self.model.named_buffers() if name.rpartition(".")[2].startswith("running_")
        ]
        for buffer in running:
            buffer.mul_(share)
        grads = [p.grad for p in self.optimizers.parameters if p.grad is not None]
        parallel.add_up([loss, *grads, *running])

    def state_dict(self) -> dict[str, Any]:
        state = {**super().state_dict(), "optimizers": self.optimizers.state_dict()}
        state["carried"] = self._all_carried()
        if self.average is not None:
            state["average"] = self.average.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.guard.reset()
        self.model.zero_grad(set_to_none=True)  # of a step that wasn't made
        self.optimizers.load_state_dict(state["optimizers"])
        device = self.model.device
        self.carried = tuple(t[parallel.own_rows(len(t))].to(device) for t in state["carried"]) or None
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    def _all_carried(self) -> list[Tensor]:
        """The state of all processes' rows, in the first process."""
        if parallel.size() == 1:
            return list(self.carried or ())
        own = [tensor.cpu() for tensor in self.carried or ()]
        return [torch.cat(parts) for parts in zip(*parallel.gather(own), strict=True)]


class AutogradLearner(GradientLearner):
    """Loss and gradients by autograd, compiled where asked."""

    def __init__(
        self, model: LanguageModel, config: TrainConfig, precision: torch.dtype, compiled: bool
    ) -> None:
        super().__init__(model, config, precision)
        if compiled:
            torch.compiler.reset()  # of the models before it: torch compiles a function for a few at most
        whole = compiled and not model.compile_parts()
        options = compile_options(model.device)
        self._loss = torch.compile(self._eager_loss, options=options) if whole else self._eager_loss
        self.compiled = compiled

    def _eager_loss(
        self, inputs_BT: Tensor, targets_BT: Tensor, count: Tensor, state: State | None
    ) -> tuple[Tensor, State | None]:
        """Summed nats over valid targets, divided once."""
        with self.autocast():
            logits, state = self.model(inputs_BT, state, targets_BT != IGNORE_INDEX)
        total = F.cross_entropy(
            logits.float().flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
        )
        return total / count.clamp(min=1), state

    def backward(self, inputs_BT: Tensor, targets_BT: Tensor, count: Tensor, first: bool) -> Tensor:
        loss, state = self._loss(inputs_BT, targets_BT, count, self.carried)
        # The penalty is of the weights, not of the tokens: once a step.
        penalty = self.model.penalty() if first and parallel.is_main() else None
        total = loss if penalty is None else loss + penalty
        # Sharding averages the gradients of what is to be added up.
        (total * parallel.size() if self.sharded else total).backward()
        if state is not None:
            self.carried = tuple(part.detach() for part in state)
        return loss.detach()

    def _gradients(self, batches: Sequence[Batch], count: Tensor, step: int) -> Tensor:
        carried, device = self.carried, self.model.device
        random = random_state(device) if self.compiled else None
        try:
            return super()._gradients(batches, count, step)
        except Exception as error:
            if random is None or is_out_of_memory(error):
                raise
            reason = next(iter(str(error).strip().splitlines()), "no reason given")[:120]
            self.not_compiled = f"{type(error).__name__}: {reason}"
            self.note = f"not compiled ({self.not_compiled}); going on without"
        self.model.compile_parts(False)
        # All begins anew, so that a resumed run that gives up at another step draws no other numbers.
        self._loss, self.compiled, self.carried = self._eager_loss, False, carried
        restore_random(random, device)
        self.model.zero_grad(set_to_none=True)
        return super()._gradients(batches, count, step)


class ManualLearner(GradientLearner):
    """Gradients from a hand-written backward pass, the model's own or in C; no autograd graph at all."""

    def __init__(
        self,
        model: LanguageModel,
        config: TrainConfig,
        precision: torch.dtype,
        by_hand: ManualModel | GradientKernel,
    ) -> None:
        super().__init__(model, config, precision)
        self.by_hand = by_hand
        self.nats = None if isinstance(by_hand, ManualModel) else by_hand.nats

    @torch.no_grad()
    def backward(self, inputs_BT: Tensor, targets_BT: Tensor, count: Tensor, first: bool) -> Tensor:
        loss, grads = self.by_hand.loss_and_grads(inputs_BT, targets_BT)
        assert not loss.requires_grad
        share = count_targets([targets_BT]) / count.clamp(min=1)
        for name, parameter in self.model.named_parameters():
            part, before = grads[name] * share, None if first else parameter.grad
            parameter.grad = part if before is None else before + part
        return loss * share


def make_learner(
    model: LanguageModel,
    config: TrainConfig,
    precision: torch.dtype,
    compiled: bool,
    held_out: Callable[[], Iterable[Batch]] = tuple,
    native: GradientKernel | None = None,
) -> Learner:
    """The learner a model is made for; ``native``: the model in C, in place of autograd."""
    if isinstance(model, CountModel):
        return CountLearner(model, held_out)
    by_hand = model if isinstance(model, ManualModel) else native
    if by_hand is not None:
        return ManualLearner(model, config, precision, by_hand)
    return AutogradLearner(model, config, precision, compiled)
