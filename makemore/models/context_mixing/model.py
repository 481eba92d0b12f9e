"""Context mixing (Mahoney 2005, the PAQ compressors).

Each context counts its continuations as they are read. A token is a path of binary decisions down a code
tree; at every node each context's counts become log-odds, and an online-trained mixer adds them up with
weights that depend on the situation. Everything is learned in one pass: predict, then update.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from makemore.models.base import OnlineMode, OnlineModel
from makemore.models.context_mixing import memory
from makemore.models.context_mixing.engine_base import Engine, Rates
from makemore.models.context_mixing.native import LIBRARY, NativeEngine
from makemore.models.context_mixing.plain import PlainEngine
from makemore.settings import CorpusStats, ModelConfig, NonNegative, Recipe
from makemore.settings.base import NonNegativeInt
from makemore.types import IGNORE_INDEX, Batch, State, TokenTraits

RATE_INTERVAL = 4096
"""Tokens read at the same learning rate."""
LONG_TEXT_TOKENS = 400_000
"""Running text that is shorter is trained at up to twice the default learning rate."""
PREDICTED_TOKENS = 512
"""Tokens predicted at once, with the probabilities of the whole vocabulary."""


class ContextMixingConfig(ModelConfig):
    """Settings of ``context-mixing``."""

    name: Literal["context-mixing"] = "context-mixing"
    lr: NonNegative = Field(0.004, description="initial learning rate of the mixers; it falls to a hundredth")
    adaptive_lr: NonNegative = Field(0.002, description="learning rate of the mixers in adaptive scores")
    memory: NonNegativeInt = Field(0, description="memory for contexts in MB (0: by the length of the text)")


class ContextMixing(OnlineModel):
    """Context mixing; its arrays stay in main memory on every device."""

    Config: ClassVar[type[ContextMixingConfig]] = ContextMixingConfig
    summary = "online mixture of many contexts' counts, one binary decision at a time"
    memory_setting = "model.memory"
    max_len = None
    reads_in_order = True

    def __init__(self, config: ContextMixingConfig, vocab_size: int, boundary_id: int) -> None:
        super().__init__(config, vocab_size, boundary_id)
        self._arrays = memory.empty_arrays()
        self._engine: Engine | None = None
        # The position after each row of the last batch, so that training can resume in mid-document.
        self._arrays["position"] = np.zeros(memory.POSITION_SIZE, np.int64)
        self._register()

    def prepare(self, tokens_N: NDArray[np.integer], traits: TokenTraits) -> None:
        """Build the code tree of a training text and note its length."""
        self._arrays.update(memory.text_arrays(tokens_N, traits, self.boundary_id))
        self._register()

    def count_batch(self, batch: Batch) -> None:
        """Predict and count a batch's targets, row by row. Raises ValueError if it continues several rows."""
        inputs_N, targets_N = _in_order(batch)
        if batch.continues and len(batch.inputs_BT) != 1:
            raise ValueError(
                f"{len(batch.inputs_BT)} rows can't be continued: they are read one after another"
            )
        if not len(self._arrays["rank_V"]):
            self.prepare(targets_N[targets_N != IGNORE_INDEX], _no_traits(self.vocab_size, self.boundary_id))
        engine, counters = self.engine, self._arrays["counters"]
        for i in range(0, len(inputs_N), RATE_INTERVAL):
            left = max(0.0, 1 - counters[memory.N_READ] / max(counters[memory.N_EXPECTED], 1))
            rates = Rates(self.config.lr * max(left, 0.01), 0.02 * max(left, 0.1))
            piece = slice(i, i + RATE_INTERVAL)
            engine.read(self._arrays["position"], inputs_N[piece], targets_N[piece], rates, counts=True)
            counters[memory.N_READ] += len(inputs_N[piece])
        if len(targets_N):
            counters[memory.LAST_TARGET] = max(targets_N[-1], 0)
        self._register()

    def finish(self, held_out: Iterable[Batch] = ()) -> None:
        """Drop unused memory."""
        if len(self._arrays["lists"]):
            used = int(self._arrays["counters"][memory.LISTS_USED])
            self._arrays["lists"] = self._arrays["lists"][:used]
            self._engine = None
            self._register()

    def init_state(self, batch_size: int, capacity: int) -> State:
        """Positions, (B, POSITION_SIZE) int64: what contexts need to know of the document's past."""
        start = torch.zeros(batch_size, memory.POSITION_SIZE, dtype=torch.int64, device=self.device)
        return (start,)

    def forward(
        self, tokens_BT: Tensor, state: State | None = None, valid_BT: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        """Log-probabilities; nothing is learned from the tokens."""
        start = self.init_state(len(tokens_BT), 0)[0] if state is None else state[0]
        positions_BP = start.cpu().numpy().copy()
        logits = self.engine.distributions(np.ascontiguousarray(tokens_BT.cpu().numpy()), positions_BP)
        new_state = None if state is None else (torch.from_numpy(positions_BP).to(start.device),)
        return torch.from_numpy(logits).to(tokens_BT.device), new_state

    def score(
        self, tokens_N: NDArray[np.integer], starts_D: NDArray[np.int64], mode: OnlineMode = "frozen"
    ) -> NDArray[np.float64]:
        """Nats (N,) of documents that are read in order; see ``OnlineModel``."""
        return (self if mode == "frozen" else self._copy())._read(tokens_N, starts_D, mode)

    def learn(
        self, tokens_N: NDArray[np.integer], starts_D: NDArray[np.int64], mode: OnlineMode
    ) -> tuple[ContextMixing, NDArray[np.float64]]:
        """A copy that has learned from documents, and their nats; see ``OnlineModel``."""
        learner = self._copy()
        return learner, learner._read(tokens_N, starts_D, mode)

    def _copy(self) -> ContextMixing:
        """A copy with room for more contexts."""
        _ = self.engine  # creates the arrays of an untrained model
        copy = ContextMixing(self.config, self.vocab_size, self.boundary_id).eval()
        copy._arrays = memory.copied(self._arrays)
        copy._register()
        return copy

    def _read(
        self, tokens_N: NDArray[np.integer], starts_D: NDArray[np.int64], mode: OnlineMode
    ) -> NDArray[np.float64]:
        position, inputs_N, targets_N = self._begin(tokens_N, starts_D)
        rates = self._adaptive_rates if mode == "adaptive" else None
        return self.engine.read(position, inputs_N, targets_N, rates, counts=mode != "frozen")

    def predict(
        self, tokens_N: NDArray[np.integer], starts_D: NDArray[np.int64]
    ) -> Iterator[NDArray[np.float32]]:
        """Log-probabilities (n, V) of documents' tokens while a copy learns; see ``OnlineModel``."""
        learner, rates = self._copy(), self._adaptive_rates
        position, inputs_N, targets_N = self._begin(tokens_N, starts_D)
        for i in range(0, len(inputs_N), PREDICTED_TOKENS):
            piece = slice(i, i + PREDICTED_TOKENS)
            shape = (len(inputs_N[piece]), self.vocab_size)
            logits_NV = np.full(shape, -np.log(self.vocab_size), np.float32)
            learner.engine.read(position, inputs_N[piece], targets_N[piece], rates, True, logits_NV)
            yield logits_NV

    @property
    def _adaptive_rates(self) -> Rates:
        return Rates(self.config.adaptive_lr, 0.01)

    def _begin(
        self, tokens_N: NDArray[np.integer], starts_D: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], ...]:
        """The initial position, inputs (N,) and targets (N,) of documents."""
        inputs_N = np.append(self.boundary_id, tokens_N[:-1]).astype(np.int64)
        inputs_N[starts_D] = self.boundary_id
        return np.zeros(memory.POSITION_SIZE, np.int64), inputs_N, tokens_N.astype(np.int64)

    def n_parameters(self) -> int:
        """Number of contexts and weights."""
        floats = sum(a.size for a in self._arrays.values() if a.dtype == np.float32)
        return int(np.count_nonzero(self._arrays["slots"])) + floats

    @classmethod
    def memory_needed(
        cls,
        config: ContextMixingConfig,
        tokens_N: np.ndarray,
        vocab_size: int,
        boundary_id: int,
        negligible: float,
    ) -> tuple[str, float]:
        arrays = memory.learned_arrays(vocab_size, len(tokens_N), config.memory * 10**6)
        return "contexts and weights", float(sum(array.nbytes for array in arrays.values()))

    @classmethod
    def recipe(cls, stats: CorpusStats) -> Recipe:
        if stats.mode == "lines":  # alike: what one teaches about the weights hardly helps in the next
            config = cls.Config(adaptive_lr=0.0003)
        else:
            factor = min(max((LONG_TEXT_TOKENS / max(stats.train_tokens, 1)) ** 0.3, 1), 2)
            config = cls.Config(lr=round(cls.Config().lr * factor, 4))
        return Recipe(config, cls.default_train_config(stats, optimizer="none", batch_tokens=1 << 16))

    @property
    def engine(self) -> Engine:
        """Reads and predicts with this model's arrays: in C or, without a compiler, in Python."""
        if self._engine is None:
            if not len(self._arrays["rank_V"]):
                self.prepare(np.zeros(0, np.int64), _no_traits(self.vocab_size, self.boundary_id))
            if not len(self._arrays["slots"]):
                n = int(self._arrays["counters"][memory.N_EXPECTED])
                self._arrays.update(memory.learned_arrays(self.vocab_size, n, self.config.memory * 10**6))
            if (code := LIBRARY.load()) is None:
                self._engine = PlainEngine(self._arrays, self.boundary_id)
            else:
                self._engine = NativeEngine(self._arrays, self.boundary_id, code)
            self._register()
        return self._engine

    def _register(self) -> None:
        """Make the arrays this module's buffers."""
        for name, array in self._arrays.items():
            buffer = self._buffers.get(name)
            if buffer is None or buffer.data_ptr() != array.ctypes.data or buffer.shape != array.shape:
                self.register_buffer(name, torch.from_numpy(array))

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle without the engine, which has pointers to the arrays."""
        return {**self.__dict__, "_engine": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._register()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Accept arrays of any size, and report invalid ones as errors of ``load_state_dict``."""
        errors: list[str] = args[4]
        for name, buffer in self.named_buffers():
            stored = state_dict.get(prefix + name, buffer)
            if stored.dtype != buffer.dtype:
                errors.append(f"{prefix}{name}: expected {buffer.dtype}, found {stored.dtype}")
            else:
                setattr(self, name, torch.empty_like(stored, device="cpu"))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._arrays = {name: buffer.numpy() for name, buffer in self.named_buffers()}
        self._engine = None
        try:
            self._arrays = memory.with_all_sets(self._arrays)
            memory.validate(self._arrays, self.vocab_size, self.boundary_id)
            self._register()
        except (ValueError, TypeError, IndexError) as error:  # the last two: too few dimensions
            errors.append(f"{prefix}contexts: {error}")


def _in_order(batch: Batch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Inputs and targets (N,) of a batch's rows one after another, without padding."""
    targets_BT = batch.targets_BT.cpu().numpy()
    counted_BT = targets_BT != IGNORE_INDEX
    lengths_B = counted_BT.shape[1] - counted_BT[:, ::-1].argmax(axis=1)
    lengths_B[~counted_BT.any(axis=1)] = 0
    inside_BT = np.arange(counted_BT.shape[1]) < lengths_B[:, None]
    return batch.inputs_BT.cpu().numpy()[inside_BT], targets_BT[inside_BT]


def _no_traits(vocab_size: int, boundary_id: int) -> TokenTraits:
    """Every token is a letter."""
    kinds_V = np.full(vocab_size, 3, np.uint8)
    kinds_V[boundary_id] = 0
    return TokenTraits(kinds_V, np.arange(vocab_size, dtype=np.int32))
