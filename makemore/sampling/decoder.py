"""Incremental decoding: one token per row at a time, without a length limit and in bounded memory."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque

import numpy as np
import torch

from makemore.models.base import CountModel, LanguageModel, MixtureModel
from makemore.sampling.decoders import FastDecoder, fast_decoder
from makemore.sampling.decoders.base import EndExclusion, StepDecoder
from makemore.sampling.decoders.gate import Mixer
from makemore.sampling.decoders.graph import GraphDecoder
from makemore.types import Floats, Floats32, Ints, State

PROMPT_CHUNK = 4096
"""Prompt tokens per forward pass."""
DUPLICATE_ROW = np.zeros(2, np.int64)
"""Indices that duplicate a single row."""


class Decoder(StepDecoder):
    """Incremental decoding state of a batch."""

    @abstractmethod
    def start(self) -> Floats32:
        """Logits (B, V) after the prompt."""


class ModelDecoder(Decoder):
    """Decodes one model: on the CPU with its fast decoder if it has one, on CUDA with a graph of ``forward``,
    else with ``forward`` itself.

    Count models always run on the CPU. When the context is full, its last half is kept: moved
    by ``drop_oldest`` if positions are relative, otherwise processed again.
    """

    def __init__(self, model: LanguageModel, prompt_BT: Ints, capacity: int, fast: bool = True) -> None:
        self.model = model
        self.limit = None if model.supports_streaming else model.max_len
        self.capacity = capacity if self.limit is None else min(capacity, self.limit)
        self.prompt_BT = prompt_BT[:, -model.max_len :] if model.max_len else prompt_BT
        self.fast = _pick_fast_decoder(model) if fast else None
        self.exclude_ends = EndExclusion(model)
        self.supports_sampling = self.fast is not None and self.fast.supports_sampling
        self.rows = len(prompt_BT)
        self.recent: deque[Ints] = deque(self.prompt_BT.T if self.limit else (), maxlen=self.limit or 0)
        self.used = 0
        """Tokens in the context."""
        self.state: State = ()

    def start(self) -> Floats32:
        self._reset()
        # In chunks, since the logits of a whole long prompt would be large.
        for i in range(0, self.prompt_BT.shape[1], PROMPT_CHUNK):
            logits_BV = self._feed(self.prompt_BT[:, i : i + PROMPT_CHUNK])
        if self.fast is not None:
            self._load_fast_decoder(self.fast)
        return logits_BV

    def _reset(self) -> None:
        with torch.inference_mode():
            self.state = self.model.init_state(self.rows, self.capacity)
        self.used = 0

    def _feed(self, tokens_BT: Ints) -> Floats32:
        with torch.inference_mode():
            tokens = torch.from_numpy(np.ascontiguousarray(tokens_BT)).to(self.model.device)
            logits, state = self.model(tokens, self.state)
            assert state is not None
            self.state, self.used = state, self.used + tokens.shape[1]
            return logits[:, -1].float().cpu().numpy()

    def _load_fast_decoder(self, fast: FastDecoder) -> None:
        fast.load(self.state)
        self.state = ()
        if self.rows == 1 and fast.duplicates_single_row:
            fast.select_rows(DUPLICATE_ROW)

    def step(self, ids_B: Ints) -> Floats32:
        if self.limit is not None:
            self.recent.append(ids_B)
            if self.used >= self.capacity:
                return self._shift_context(self.limit // 2)
        return self._step(ids_B)

    def _step(self, ids_B: Ints) -> Floats32:
        if self.fast is None:
            return self._feed(ids_B[:, None])
        self.used += 1
        if self.rows == 1 and self.fast.duplicates_single_row:
            return self.exclude_ends(self.fast.step(ids_B.take(DUPLICATE_ROW))[:1], ids_B)
        return self.exclude_ends(self.fast.step(ids_B), ids_B)

    def _shift_context(self, half: int) -> Floats32:
        """Drop all but the last ``half`` tokens of the context, then step."""
        if self._roll(half):
            self.used = half
            return self._step(self.recent[-1])
        self._reset()
        recent = list(self.recent)[-max(1, half) :]
        if self.fast is None:
            return self._feed(np.stack(recent, axis=1))
        self._load_fast_decoder(self.fast)
        return [self._step(ids_B) for ids_B in recent][-1]

    def _roll(self, n_tokens: int) -> bool:
        if self.fast is not None:
            return self.fast.drop_oldest(n_tokens)
        with torch.inference_mode():
            state = self.model.drop_oldest(self.state, n_tokens)
        self.state = state or ()
        return state is not None

    def sample(self, uniform_B: Floats) -> Ints:
        assert self.fast is not None
        return self.fast.sample(uniform_B)

    def select_rows(self, rows_K: Ints) -> None:
        self.rows = len(rows_K)
        for i, ids_B in enumerate(self.recent):
            self.recent[i] = ids_B[rows_K]
        if self.fast is not None:
            self.fast.select_rows(
                rows_K.take(DUPLICATE_ROW) if self.rows == 1 and self.fast.duplicates_single_row else rows_K
            )
        rows = torch.from_numpy(rows_K).to(self.model.device)
        self.state = tuple(part[rows] for part in self.state)


def _pick_fast_decoder(model: LanguageModel) -> FastDecoder | None:
    if model.device.type == "cpu" or isinstance(model, CountModel):
        return fast_decoder(model)
    has_state = len(model.init_state(1, 1)) > 0
    return GraphDecoder(model) if model.device.type == "cuda" and has_state else None


class MixtureDecoder(Decoder):
    """Decodes each member separately and mixes their probabilities at every token."""

    def __init__(self, model: MixtureModel, prompt_BT: Ints, capacity: int, fast: bool = True) -> None:
        self.members = [make_decoder(member, prompt_BT, capacity, fast) for member in model.members]
        self.mixer = Mixer(model)

    def start(self) -> Floats32:
        return self._mix([member.start() for member in self.members])

    def step(self, ids_B: Ints) -> Floats32:
        return self._mix([member.step(ids_B) for member in self.members])

    def _mix(self, logits: list[Floats32]) -> Floats32:
        return self.mixer(np.stack([_log_softmax(z) for z in logits], axis=1))

    def select_rows(self, rows_K: Ints) -> None:
        for member in self.members:
            member.select_rows(rows_K)


def _log_softmax(logits_BV: Floats32) -> Floats32:
    z_BV = logits_BV - logits_BV.max(axis=-1, keepdims=True)
    return z_BV - np.log(np.exp(z_BV).sum(axis=-1, keepdims=True))


def make_decoder(model: LanguageModel, prompt_BT: Ints, capacity: int, fast: bool = True) -> Decoder:
    """Create a decoder for a prompt (B, T) of at least one token, with room for ``capacity`` tokens in total.

    ``fast=False`` uses ``forward`` only, no fast decoder.
    """
    if isinstance(model, MixtureModel):
        return MixtureDecoder(model, prompt_BT, capacity, fast)
    return ModelDecoder(model, prompt_BT, capacity, fast)
