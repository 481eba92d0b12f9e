"""The interface of learners, which run single training steps."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from makemore.models.base import LanguageModel
from makemore.runtime.sharding import is_sharded, shard_like
from makemore.training.optimizers.ema import EMA
from makemore.types import IGNORE_INDEX, Batch


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
    """Reason why compilation failed; empty if it didn't."""
    ema: EMA | None = None
    """EMA of the weights, if one is kept."""
    nats: Callable[[Tensor, Tensor], float] | None = None
    """Sums the nats of targets given inputs; None if nothing is faster than ``forward``."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.sharded = is_sharded(model)

    @property
    def lr(self) -> float:
        """The learning rate of the last step; 0 for learners without one."""
        return 0.0

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

    def state_dict(self) -> dict[str, Any]:
        """The state to save; if weights are sharded, with this rank's shards."""
        return {"model": self.model.state_dict()}

    def shard_weights(self, weights: Mapping[str, Any]) -> dict[str, Tensor]:
        """This rank's shards of saved weights, or the weights if the model isn't sharded."""
        local = self.model.state_dict() if self.sharded else {}
        return {name: shard_like(saved, local.get(name, saved)) for name, saved in weights.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(self.shard_weights(state["model"]))


def count_targets(targets: Sequence[Tensor]) -> Tensor:
    """Number of valid targets (not IGNORE_INDEX), () int64, on their device."""
    counts = [(targets_BT != IGNORE_INDEX).sum() for targets_BT in targets]
    return counts[0] if len(counts) == 1 else torch.stack(counts).sum()
