"""One training step, three ways: autograd, hand-written backprop, counting."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from makemore.config import TrainConfig
from makemore.device import is_out_of_memory, to_device
from makemore.models.base import CountModel, LanguageModel, ManualModel
from makemore.optim import Average, Optimizers
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

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    @abstractmethod
    def step(self, batches: Sequence[Batch], step: int, progress: float) -> Metrics:
        """Learn from one batch, which comes in parts: the result is that of all their tokens at once.

        ``progress``: the share of the budget used, in [0, 1].
        """

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision that the model computes at."""
        return contextlib.nullcontext()

    def finish(self) -> None:  # noqa: B027 - only counting has something to finish
        """All of train has been seen."""

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])


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
            self.model.observe(batch)
        return Metrics(None, None, count_targets([batch.targets_BT for batch in batches]))

    def finish(self) -> None:
        self.model.finish(self.held_out())


class GradientLearner(Learner):
    """What the two gradient learners share: precision, optimizers, carried state."""

    def __init__(self, model: LanguageModel, config: TrainConfig, precision: torch.dtype) -> None:
        super().__init__(model)
        self.config, self.precision = config, precision
        self.optimizers = Optimizers(model, config)
        self.average = Average(model, config.ema) if config.ema else None
        self.carried: State | None = None

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == torch.float32:
            return super().autocast()
        return torch.autocast(self.model.device.type, self.precision)

    @abstractmethod
    def backward(self, inputs_BT: Tensor, targets_BT: Tensor, count: Tensor, first: bool) -> Tensor:
        """Add a part's share to every parameter's ``grad``; returns its share of the loss.

        ``count``: the valid targets of all parts, () int64; ``first``: no gradients stand yet.
        """

    def _carry(self, batch: Batch) -> None:
        if self.config.loader != "streams":
            return
        rows, length = batch.inputs_BT.shape
        fresh = self.model.init_state(rows, length)
        if not batch.continues or self.carried is None:
            self.carried = fresh
            return
        # Now and then a row begins anew: a prompt has no past either.
        cold_B = to_device(torch.rand(rows) < COLD_STARTS, self.model.device)
        self.carried = tuple(
            torch.where(cold_B.view(-1, *[1] * (old.ndim - 1)), new, old)
            for new, old in zip(fresh, self.carried, strict=True)
        )

    def step(self, batches: Sequence[Batch], step: int, progress: float) -> Metrics:
        device = self.model.device
        self.model.train()
        batches = [
            Batch(to_device(inputs_BT, device), to_device(targets_BT, device), continues)
            for inputs_BT, targets_BT, continues in batches
        ]
        count = count_targets([batch.targets_BT for batch in batches])
        loss = self._gradients(batches, count)
        norm = self.optimizers.clip()
        self.optimizers.step(step, progress)
        if self.average is not None:
            self.average.update()
        return Metrics(loss, norm, count)

    def _gradients(self, batches: Sequence[Batch], count: Tensor) -> Tensor:
        """Every parameter's ``grad`` over all parts of a batch; returns the loss."""
        losses = []
        for i, batch in enumerate(batches):
            self._carry(batch)
            losses.append(self.backward(batch.inputs_BT, batch.targets_BT, count, first=i == 0))
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def state_dict(self) -> dict[str, Any]:
        state = {**super().state_dict(), "optimizers": self.optimizers.state_dict()}
        state["carried"] = list(self.carried) if self.carried is not None else []
        if self.average is not None:
            state["average"] = self.average.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.optimizers.load_state_dict(state["optimizers"])
        self.carried = tuple(t.to(self.model.device) for t in state["carried"]) or None
        if self.average is not None:
            self.average.load_state_dict(state["average"])


class AutogradLearner(GradientLearner):
    """Loss and gradients by autograd, compiled where asked."""

    def __init__(
        self, model: LanguageModel, config: TrainConfig, precision: torch.dtype, compiled: bool
    ) -> None:
        super().__init__(model, config, precision)
        self._loss = torch.compile(self._eager_loss) if compiled else self._eager_loss
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
        penalty = self.model.penalty() if first else None
        (loss if penalty is None else loss + penalty).backward()
        if state is not None:
            self.carried = tuple(part.detach() for part in state)
        return loss.detach()

    def _gradients(self, batches: Sequence[Batch], count: Tensor) -> Tensor:
        carried = self.carried
        try:
            return super()._gradients(batches, count)
        except Exception as error:
            if not self.compiled or is_out_of_memory(error):
                raise
            reason = next(iter(str(error).strip().splitlines()), "no reason given")[:120]
            self.not_compiled = f"{type(error).__name__}: {reason}"
            self.note = f"not compiled ({self.not_compiled}); going on without"
        self._loss, self.compiled, self.carried = self._eager_loss, False, carried
        self.model.zero_grad(set_to_none=True)
        return super()._gradients(batches, count)


class ManualLearner(GradientLearner):
    """Gradients from the model's own hand-written backward pass; no autograd graph at all."""

    model: ManualModel

    @torch.no_grad()
    def backward(self, inputs_BT: Tensor, targets_BT: Tensor, count: Tensor, first: bool) -> Tensor:
        loss, grads = self.model.loss_and_grads(inputs_BT, targets_BT)
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
) -> Learner:
    """The learner a model is made for."""
    if isinstance(model, CountModel):
        return CountLearner(model, held_out)
    if isinstance(model, ManualModel):
        return ManualLearner(model, config, torch.float32)
    return AutogradLearner(model, config, precision, compiled)
