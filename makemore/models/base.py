"""The interface of every model.

Tests check every registered model in eval mode: it is causal; its softmax sums to 1 over the
vocabulary; splitting a sequence into chunks leaves its logits unchanged; a row's logits do not depend
on the other rows; no context is added, except boundary tokens before the start of a document.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from makemore.settings import CorpusStats, ModelConfig, Recipe, TrainConfig
from makemore.types import IMPOSSIBLE_LOGIT, Batch, DocumentEnds, State, TokenTraits


class LanguageModel(nn.Module, ABC):
    """Predicts the next token. Concrete models are subclassed only to give them other settings."""

    Config: ClassVar[type[ModelConfig]]
    """The model's settings; every field has a default and a help text."""
    summary: ClassVar[str]
    """One-line description for ``makemore models``."""

    is_trainable: ClassVar[bool] = True
    """Whether the model is trained on text; False if it combines trained runs."""
    trains_members: ClassVar[bool] = False
    """Whether training trains other models, and combines them."""

    supports_packing: ClassVar[bool] = False
    """Whether documents may share a row: the model ignores everything before a boundary token."""

    one_document_per_row: bool = False
    """Whether each row holds (part of) one document, then only padding; set by the training code. A model
    that ``supports_packing`` then needs no document mask. Applies to calls without a state."""

    supports_autocast: ClassVar[bool] = True
    """Whether mixed precision applies; if False, the model always trains in float32."""

    supports_compile: ClassVar[bool] = True
    """Whether ``torch.compile`` helps; False if, for example, each layer is already a single kernel."""

    train_defaults: ClassVar[Mapping[str, Any]] = {}
    """Training settings that the default ``recipe`` changes for this model."""

    max_len: int | None
    """Maximum context length in tokens; None if unbounded, as with a recurrent state."""
    supports_streaming: bool = True
    """Whether input of any length can be processed with a state of constant size.
    If False, the tokens seen by a state and the tokens of a call must not exceed ``max_len`` in total."""

    def __init__(self, config: Any, vocab_size: int, boundary_id: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.boundary_id = boundary_id
        self.document_ends: DocumentEnds = "anywhere"
        """Where the boundary can come next; elsewhere, ``forward`` rules it out."""

    def set_document_ends(self, document_ends: DocumentEnds) -> None:
        """Rule out the boundary where no document of the text ends."""
        self.document_ends = document_ends

    def exclude_ends(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Logits (…, V) after tokens (…), with the boundary ruled out where no document ends."""
        if self.document_ends == "anywhere":
            return logits
        is_excluded = torch.arange(self.vocab_size, device=logits.device) == self.boundary_id
        if self.document_ends == "nonempty":
            is_excluded = is_excluded & (tokens == self.boundary_id)[..., None]
        return logits.masked_fill(is_excluded, IMPOSSIBLE_LOGIT)

    @abstractmethod
    def init_state(self, batch_size: int, capacity: int) -> State:
        """Initial state of ``batch_size`` rows, with room for ``capacity`` tokens."""

    @abstractmethod
    def forward(
        self, tokens_BT: Tensor, state: State | None = None, valid_BT: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        """Return logits (B, T, V), where ``logits[:, t]`` predicts the token after ``tokens_BT[:, t]``.

        With a state, continue from it (it may be overwritten) and also return the next state.
        Without one, each row begins a document and the returned state is None.
        ``valid_BT`` (bool) marks real tokens, for layers whose batch statistics must ignore padding.
        """

    def drop_oldest(self, state: State, n_keep: int) -> State | None:
        """Drop all but the last ``n_keep`` tokens from a full state, for models with a limited context.
        Returns None if the state depends on where the context began and must be recomputed."""
        return None

    @classmethod
    def recipe(cls, stats: CorpusStats) -> Recipe:
        """Default settings for a corpus of this size and this training budget."""
        return Recipe(cls.Config(), cls.default_train_config(stats, **cls.train_defaults))

    @classmethod
    def default_train_config(cls, stats: CorpusStats, **changes: Any) -> TrainConfig:
        """Training settings shared by all gradient-trained models, with ``changes`` applied."""
        if stats.mode == "lines":
            longest = min(stats.longest_document, 256)
            # Packing splits longer documents; a streaming model would then lose the context before the split.
            is_packed = cls.supports_packing and (
                not cls.supports_streaming or stats.longest_document <= longest
            )
            packing = {"loader": "packed", "block_size": max(longest, 64)}
            changes = {
                **(packing if is_packed else {"loader": "documents", "block_size": longest}),
                **changes,
            }
        return TrainConfig(steps=stats.steps, max_time=stats.max_time).replace(**changes)

    @property
    def context_prefix(self) -> int:
        """Number of preceding tokens that give a mid-document window full context from its first token."""
        return self.max_len - 1 if self.supports_streaming and self.max_len else 0

    @property
    def device(self) -> torch.device:
        return next((t.device for t in [*self.parameters(), *self.buffers()]), torch.device("cpu"))

    def compile_blocks(self, wanted: bool = True) -> bool:
        """Compile the part that a training step repeats, or undo this if not ``wanted``. Returns False if
        there is no such part and the whole step should be compiled instead."""
        return False

    def regularization_loss(self) -> Tensor | None:
        """Regularization loss, a scalar in nats per token to add to the loss, or None."""
        return None

    def muon_parameters(self) -> dict[str, int]:
        """Parameters that Muon may train: all matrices between embeddings and output layer (``head``).

        Returns the number of matrices (gates) stacked along dimension 0, by parameter name.
        """
        return {
            f"{name}.weight": 1
            for name, module in self.named_modules()
            if isinstance(module, nn.Linear) and name.rpartition(".")[2] != "head"
        }

    def n_parameters(self) -> int:
        """Number of trained parameters; shared parameters count once."""
        return sum(p.numel() for p in self.parameters())


class CountModel(LanguageModel):
    """A model whose parameters are counts, trained in one pass without gradients."""

    supports_autocast = False
    supports_compile = False

    memory_setting: ClassVar[str]
    """The setting that limits memory."""

    def set_document_ends(self, document_ends: DocumentEnds) -> None:
        """Nothing to do: the counts show where documents end."""

    @classmethod
    @abstractmethod
    def memory_needed(
        cls, config: Any, tokens_N: np.ndarray, vocab_size: int, boundary_id: int, negligible: float
    ) -> tuple[str, float]:
        """Estimate what training on a text stores, in words, and the bytes that it takes. An upper bound
        below ``negligible`` is enough."""

    reads_in_order: ClassVar[bool] = False
    """Whether documents are read in their order, in one row, instead of sorted by length."""

    def prepare(self, tokens_N: np.ndarray, traits: TokenTraits) -> None:
        """Inspect the whole training text before the first batch."""

    @abstractmethod
    def count_batch(self, batch: Batch) -> None:
        """Count a batch. Each row is a whole document or continues the previous batch's row."""

    @abstractmethod
    def finish(self, held_out: Iterable[Batch] = ()) -> None:
        """Finalise after the last training batch; held-out batches may be used to choose settings."""


OnlineMode = Literal["frozen", "cache", "adaptive"]
"""What a model learns from the text that it scores: nothing; counts; counts and weights."""


class OnlineModel(CountModel):
    """A count model that learns from each token as soon as it has predicted it, also while it is scored."""

    @abstractmethod
    def score(
        self, tokens_N: np.ndarray, starts_D: np.ndarray, mode: OnlineMode = "frozen"
    ) -> NDArray[np.float64]:
        """Nats (N,) of documents that are read in order; the model doesn't change.

        Args:
            tokens_N: the targets.
            starts_D: index of each document's first target.
            mode: except in ``frozen``, what is learned from a document is kept for the next.
        """

    @abstractmethod
    def learn(
        self, tokens_N: np.ndarray, starts_D: np.ndarray, mode: OnlineMode
    ) -> tuple[OnlineModel, NDArray[np.float64]]:
        """A copy that has learned from documents, and their nats as in ``score``."""

    @abstractmethod
    def predict(self, tokens_N: np.ndarray, starts_D: np.ndarray) -> Iterator[NDArray[np.float32]]:
        """Yield log-probabilities (n, V) of documents' tokens, in order, as in an adaptive ``score``."""


class MixtureModel(LanguageModel):
    """Mixes the probabilities of several models."""

    is_trainable = False

    gates: nn.ModuleList
    """What weighs the members at each token: the gate of other texts first. Empty: constant weights."""

    @property
    @abstractmethod
    def members(self) -> list[LanguageModel]:
        """The mixed models."""

    @property
    @abstractmethod
    def weights(self) -> Tensor:
        """Constant weights: (members,) float64 on the CPU, non-negative, summing to 1."""

    @abstractmethod
    def with_members(self, members: Sequence[LanguageModel], gate: nn.Module | None = None) -> MixtureModel:
        """A mixture of these models, with this one's weights or, if given, another gate."""

    @property
    def is_gated(self) -> bool:
        return len(self.gates) > 0

    @abstractmethod
    def mix(self, log_probs: Tensor, gate: int = 0) -> Tensor:
        """Log-probabilities (…, V) of the members' (…, K, V), by the gate of this number if there are any."""


class ManualModel(LanguageModel):
    """A model with a hand-written backward pass, checked against autograd through ``forward``."""

    supports_autocast = False
    supports_compile = False

    @abstractmethod
    def loss_and_grads(self, inputs_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over valid targets in nats and its gradients by name, without an autograd graph."""


def zero_head(n_in: int, vocab_size: int) -> nn.Linear:
    """An output layer of zeros: predictions are uniform at first, so the loss at step 0 is ln V."""
    head = nn.Linear(n_in, vocab_size)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head
