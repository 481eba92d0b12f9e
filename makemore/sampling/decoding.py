"""From tokens to logits, one token a row at a time, without end and in bounded memory."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray

from makemore.models.base import LanguageModel, MixtureModel
from makemore.types import State

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class Decoder(ABC):
    """The state of a generation."""

    draws = False
    """Whether ``draw`` can be asked."""

    @abstractmethod
    def start(self) -> Floats:
        """Logits (B, V) after the prompt."""

    @abstractmethod
    def step(self, ids_B: Ints) -> Floats:
        """Logits (B, V) after one more token a row; the next call may overwrite them."""

    @abstractmethod
    def keep(self, rows_K: Ints) -> None:
        """Go on with some of the rows only, in this order; a row may be taken more than once."""

    def draw(self, uniform_B: NDArray[np.float64]) -> Ints:
        """In place of ``step``: draw tokens (B,) from the model's own distribution, and feed them."""
        raise NotImplementedError


class ModelDecoder(Decoder):
    """Feeds one model: by its stepper on the CPU, where it has one, else by ``forward``.

    A model whose context is full keeps the last half of it: by ``roll`` where positions are relative,
    else by reading that half anew.
    """

    def __init__(self, model: LanguageModel, prompt_BT: Ints, capacity: int, fast: bool = True) -> None:
        self.model = model
        self.limit = None if model.streams else model.max_len
        self.capacity = capacity if self.limit is None else min(capacity, self.limit)
        self.recent = list(prompt_BT.T) if self.limit is None else list(prompt_BT.T[-self.limit :])
        self.stepper = model.stepper() if fast and model.device.type == "cpu" else None
        self.draws = self.stepper is not None and self.stepper.can_draw
        self.state: State = ()

    def start(self) -> Floats:
        if self.limit is not None and len(self.recent) >= self.limit:
            self._forget()
        tokens_BT = np.stack(self.recent, axis=1)
        if self.limit is None:
            self.recent = []
        with torch.inference_mode():
            self.state = self.model.init_state(len(tokens_BT), self.capacity)
        self.used = 0
        logits_BV = self._feed(tokens_BT)
        if self.stepper is not None:
            self.stepper.load(self.state)
            self.state = ()
        return logits_BV

    def _feed(self, tokens_BT: Ints) -> Floats:
        with torch.inference_mode():
            tokens = torch.from_numpy(tokens_BT).to(self.model.device)
            logits, state = self.model(tokens, self.state)
            assert state is not None
            self.state, self.used = state, self.used + tokens.shape[1]
            return logits[:, -1].float().cpu().numpy()

    def _forget(self) -> None:
        assert self.limit is not None
        self.recent = self.recent[-max(1, self.limit // 2) :]

    def _roll(self) -> bool:
        assert self.limit is not None
        half = self.limit // 2
        if self.stepper is not None:
            rolled = self.stepper.roll(half)
        else:
            with torch.inference_mode():
                state = self.model.roll(self.state, half)
            rolled = state is not None
            self.state = state or ()
        self.used = half
        return rolled

    def step(self, ids_B: Ints) -> Floats:
        if self.limit is not None:
            self.recent.append(ids_B)
            if self.used >= self.capacity:
                self._forget()
                if not self._roll():
                    return self.start()
        if self.stepper is None:
            return self._feed(ids_B[:, None])
        self.used += 1
        return self.stepper.step(ids_B)

    def draw(self, uniform_B: NDArray[np.float64]) -> Ints:
        assert self.stepper is not None
        return self.stepper.draw(uniform_B)

    def keep(self, rows_K: Ints) -> None:
        self.recent = [ids_B[rows_K] for ids_B in self.recent]
        if self.stepper is not None:
            self.stepper.keep(rows_K)
        rows = torch.from_numpy(rows_K).to(self.model.device)
        self.state = tuple(part[rows] for part in self.state)


class MixtureDecoder(Decoder):
    """Members decode each in its own way; their probabilities are joined token by token."""

    def __init__(self, model: MixtureModel, prompt_BT: Ints, capacity: int, fast: bool = True) -> None:
        self.members = [make_decoder(member, prompt_BT, capacity, fast) for member in model.members]
        with np.errstate(divide="ignore"):  # a member may weigh nothing
            self.log_weights = np.log(model.weights.cpu().numpy()).astype(np.float32)

    def start(self) -> Floats:
        return self._join([member.start() for member in self.members])

    def step(self, ids_B: Ints) -> Floats:
        return self._join([member.step(ids_B) for member in self.members])

    def _join(self, logits: list[Floats]) -> Floats:
        weighted = [_log_softmax(z) + weight for z, weight in zip(logits, self.log_weights, strict=True)]
        return np.logaddexp.reduce(weighted)

    def keep(self, rows_K: Ints) -> None:
        for member in self.members:
            member.keep(rows_K)


def _log_softmax(logits_BV: Floats) -> Floats:
    z_BV = logits_BV - logits_BV.max(axis=-1, keepdims=True)
    return z_BV - np.log(np.exp(z_BV).sum(axis=-1, keepdims=True))


def make_decoder(model: LanguageModel, prompt_BT: Ints, capacity: int, fast: bool = True) -> Decoder:
    """A decoder for a prompt of at least one token and ``capacity`` tokens in all.

    ``fast=False``: by ``forward`` alone.
    """
    if isinstance(model, MixtureModel):
        return MixtureDecoder(model, prompt_BT, capacity, fast)
    return ModelDecoder(model, prompt_BT, capacity, fast)
