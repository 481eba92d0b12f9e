"""The contract of every rung.

Laws, in eval mode, tested for every registered model: causal; the softmax sums to 1 over the whole
vocabulary; any way of cutting a sequence into chunks gives the same logits as one call; a row's
result does not depend on its batch-mates; no made-up context, except the boundary token where a
document really begins.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from makemore.settings import CorpusFacts, Recipe, TrainConfig
from makemore.types import Batch, State


class LanguageModel(nn.Module, ABC):
    """Predicts the next token. A concrete model is never subclassed further."""

    Config: ClassVar[type]
    """A frozen dataclass of the model's settings, every field with a default and a help line."""
    summary: ClassVar[str]
    """One line for ``makemore models``."""

    standalone: ClassVar[bool] = True
    """False: made of trained runs rather than trained on a text."""

    packs: ClassVar[bool] = False
    """True: documents may share a row, because a boundary token in the input begins a document,
    before which nothing is seen."""

    one_document: bool = False
    """Set by who makes the batches: each row is one document, or a piece of one, whatever follows it
    padding; so a model that ``packs`` need hide nothing in it. Of rows without a state only."""

    autocasts: ClassVar[bool] = True
    """False: it is trained in float32, whatever the precision asked for."""

    compiles: ClassVar[bool] = True
    """False: compiling gains nothing, as where its layers are single kernels already."""

    max_len: int | None
    """The longest context it can look at, in tokens; None where it carries unbounded state."""
    streams: bool = True
    """True: input of any length may flow through with state of constant size.
    False: what a state has seen and one call together may not be longer than ``max_len``."""

    def __init__(self, config: Any, vocab_size: int, boundary_id: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.boundary_id = boundary_id

    @abstractmethod
    def init_state(self, batch_size: int, capacity: int) -> State:
        """State of ``batch_size`` rows before any token, with room for ``capacity`` tokens."""

    @abstractmethod
    def forward(
        self, tokens_BT: Tensor, state: State | None = None, valid_BT: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        """Logits (B, T, V), where ``logits[:, t]`` is of the token after ``tokens_BT[:, t]``.

        With a state, goes on from it and returns the next one (the given one may be overwritten);
        without, rows begin at a document's start and no state is returned.
        ``valid_BT`` (bool) marks real tokens, for layers whose statistics must ignore padding.
        """

    def roll(self, state: State, keep: int) -> State | None:
        """A full state without all but its last ``keep`` tokens, for models with a limited context.

        None: what it remembers depends on where the context began, and has to be computed anew.
        """
        return None

    @classmethod
    def recipe(cls, facts: CorpusFacts) -> Recipe:
        """Settings that need no tuning on a corpus of this size, within this budget."""
        return Recipe(cls.Config(), cls.base_training(facts))

    @classmethod
    def base_training(cls, facts: CorpusFacts, **changes: Any) -> TrainConfig:
        """The training recipe that all gradient rungs start from, with a rung's own changes."""
        if facts.mode == "lines":
            longest = min(facts.longest_document, 256)
            # A row that streams past a document's cut begins it in the middle, without what came before.
            packs = cls.packs and (not cls.streams or facts.longest_document <= longest)
            rows = {"loader": "packed", "block_size": max(longest, 64)}
            changes = {**(rows if packs else {"loader": "documents", "block_size": longest}), **changes}
        return replace(TrainConfig(steps=facts.steps, max_time=facts.max_time), **changes)

    @property
    def lead(self) -> int:
        """Tokens to feed before a window in mid-document, so that its first context is real."""
        return self.max_len - 1 if self.streams and self.max_len else 0

    @property
    def device(self) -> torch.device:
        return next((t.device for t in [*self.parameters(), *self.buffers()]), torch.device("cpu"))

    def compile_parts(self, wanted: bool = True) -> bool:
        """Have what a training step repeats compiled once, or no more; False where there is nothing of
        the kind, and the step is to be compiled whole."""
        return False

    def penalty(self) -> Tensor | None:
        """A scalar to add to the loss (nats per token), or None."""
        return None

    def hidden_matrices(self) -> dict[str, int]:
        """Names of the parameters between embeddings and output layer, which Muon may train, and of
        how many matrices, one above the other, each consists (gates).

        By convention the output layer is called ``head``.
        """
        return {
            f"{name}.weight": 1
            for name, module in self.named_modules()
            if isinstance(module, nn.Linear) and name.rpartition(".")[2] != "head"
        }

    def n_parameters(self) -> int:
        """Trained numbers, each counted once."""
        return sum(p.numel() for p in self.parameters())


class CountModel(LanguageModel):
    """A model whose parameters are counts: it observes each batch once, without gradients."""

    autocasts = False
    compiles = False

    @abstractmethod
    def observe(self, batch: Batch) -> None:
        """Count a batch. Rows are whole documents or go on where the row before ended."""

    @abstractmethod
    def finish(self, held_out: Iterable[Batch] = ()) -> None:
        """Called once all of train has been observed; held-out batches may decide settings."""


class MixtureModel(LanguageModel):
    """A weighted sum of its members' probabilities, each of which is scored in its own way."""

    standalone = False

    @property
    @abstractmethod
    def members(self) -> list[LanguageModel]:
        """The models that are mixed."""

    @property
    @abstractmethod
    def weights(self) -> Tensor:
        """(members,) float64 on the CPU, not negative, sum 1."""


class ManualModel(LanguageModel):
    """A model with a hand-written backward pass, checked against autograd through ``forward``."""

    autocasts = False
    compiles = False

    @abstractmethod
    def loss_and_grads(self, inputs_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean nats over valid targets, and its gradient by parameter name. Builds no graph."""
