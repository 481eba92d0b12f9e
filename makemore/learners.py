"""One training step, three ways: autograd, hand-written backprop, counting."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from makemore.config import TrainConfig
from makemore.models.base import CountModel, LanguageModel, ManualModel
from makemore.optim import Optimizers
from makemore.types import IGNORE_INDEX, Batch, State

COLD_STARTS = 0.02
"""Share of streams whose carried state is dropped, each step."""


class Metrics(NamedTuple):
    """What a step says: mean nats per valid target, the gradient's norm (0-dim), valid targets."""

    loss: Tensor | None
    grad_norm: Tensor | None
    tokens: int


class Learner(ABC):
    """Changes a model by one batch at a time."""

    note: str = ""
    """One line worth telling the user, such as why compiling was given up."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    @abstractmethod
    def step(self, batch: Batch, step: int, progress: float) -> Metrics:
        """Learn from a batch. ``progress``: the share of the budget used, in [0, 1]."""

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision that the model computes at."""
        return contextlib.nullcontext()

    def finish(self) -> None:  # noqa: B027 - only counting has something to finish
        """All of train has been seen."""

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])


class CountLearner(Learner):
    """Observes each batch once; ``held_out`` gives val's batches, for settings chosen on them."""

    model: CountModel

    def __init__(self, model: CountModel, held_out: Callable[[], Iterable[Batch]]) -> None:
        super().__init__(model)
        self.held_out = held_out

    def step(self, batch: Batch, step: int, progress: float) -> Metrics:
        self.model.observe(batch)
        return Metrics(None, None, int((batch.targets_BT != IGNORE_INDEX).sum()))

    def finish(self) -> None:
        self.model.finish(self.held_out())


class GradientLearner(Learner):
    """What the two gradient learners share: precision, optimizers, carried state."""

    def __init__(self, model: LanguageModel, config: TrainConfig, precision: torch.dtype) -> None:
        super().__init__(model)
        self.config, self.precision = config, precision
        self.optimizers = Optimizers(model, config)
        self.carried: State | None = None

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == torch.float32:
            return super().autocast()
        return torch.autocast(self.model.device.type, self.precision)

    @abstractmethod
    def backward(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Set every parameter's ``grad``; returns the loss."""

    def _carry(self, batch: Batch) -> None:
        if self.config.loader != "streams":
            return
        rows, length = batch.inputs_BT.shape
        fresh = self.model.init_state(rows, length)
        if not batch.continues or self.carried is None:
            self.carried = fresh
            return
        # Now and then a row begins anew: a prompt has no past either.
        cold_B = torch.rand(rows) < COLD_STARTS
        self.carried = tuple(
            torch.where(cold_B.to(old.device).view(-1, *[1] * (old.ndim - 1)), new, old)
            for new, old in zip(fresh, self.carried, strict=True)
        )

    def step(self, batch: Batch, step: int, progress: float) -> Metrics:
        device = self.model.device
        self.model.train()
        self._carry(batch)
        inputs_BT = batch.inputs_BT.to(device, non_blocking=True)
        targets_BT = batch.targets_BT.to(device, non_blocking=True)
        loss = self.backward(inputs_BT, targets_BT)
        norm = self.optimizers.clip()
        self.optimizers.step(step, progress)
        return Metrics(loss, norm, int((batch.targets_BT != IGNORE_INDEX).sum()))

    def state_dict(self) -> dict[str, Any]:
        carried = list(self.carried) if self.carried is not None else []
        return {**super().state_dict(), "optimizers": self.optimizers.state_dict(), "carried": carried}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.optimizers.load_state_dict(state["optimizers"])
        self.carried = tuple(t.to(self.model.device) for t in state["carried"]) or None


class AutogradLearner(GradientLearner):
    """Loss and gradients by autograd, compiled where asked."""

    def __init__(
        self, model: LanguageModel, config: TrainConfig, precision: torch.dtype, compiled: bool
    ) -> None:
        super().__init__(model, config, precision)
        self._loss = torch.compile(self._eager_loss) if compiled else self._eager_loss
        self._compiling = compiled

    def _eager_loss(
        self, inputs_BT: Tensor, targets_BT: Tensor, state: State | None
    ) -> tuple[Tensor, State | None]:
        """Summed nats over valid targets, divided once."""
        valid_BT = targets_BT != IGNORE_INDEX
        with self.autocast():
            logits, state = self.model(inputs_BT, state, valid_BT)
        total = F.cross_entropy(
            logits.float().flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
        )
        return total / valid_BT.sum().clamp(min=1), state

    def _forward_backward(self, inputs_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, State | None]:
        loss, state = self._loss(inputs_BT, targets_BT, self.carried)
        penalty = self.model.penalty()
        (loss if penalty is None else loss + penalty).backward()
        return loss.detach(), state

    def backward(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        try:
            loss, state = self._forward_backward(inputs_BT, targets_BT)
        except Exception as error:
            if not self._compiling:
                raise
            reason = next(iter(str(error).strip().splitlines()), "no reason given")[:120]
            self.note = f"not compiled ({type(error).__name__}: {reason}); going on without"
            self._loss, self._compiling = self._eager_loss, False
            self.model.zero_grad(set_to_none=True)
            return self.backward(inputs_BT, targets_BT)
        if state is not None:
            self.carried = tuple(part.detach() for part in state)
        return loss


class ManualLearner(GradientLearner):
    """Gradients from the model's own hand-written backward pass; no autograd graph at all."""

    model: ManualModel

    @torch.no_grad()
    def backward(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        loss, grads = self.model.loss_and_grads(inputs_BT, targets_BT)
        assert not loss.requires_grad
        for name, parameter in self.model.named_parameters():
            parameter.grad = grads[name]
        return loss


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
