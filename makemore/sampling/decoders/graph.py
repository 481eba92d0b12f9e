"""Decoding on a CUDA device: ``forward`` for one token per row, launched as a CUDA graph."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from makemore.models.base import LanguageModel
from makemore.runtime.graphs import GraphedFunction
from makemore.sampling.decoders.base import FastDecoder
from makemore.types import Floats32, Ints, State


class GraphDecoder(FastDecoder):
    """Replays ``forward`` as a CUDA graph, on a state that stays in place.

    Finished rows remain as padding until half of the batch is left: a new batch size needs a new graph.
    """

    duplicates_single_row = False

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.state: State = ()
        self.slots = np.zeros(0, np.int64)
        """The position of each row in the state's batch."""

    def load(self, state: State) -> None:
        with torch.inference_mode():
            self._reset(state)

    def _reset(self, state: State) -> None:
        self.slots = np.arange(len(state[0]))
        if [part.shape for part in state] == [part.shape for part in self.state]:
            self._overwrite(state)
            return
        self.state = tuple(part.clone() for part in state)
        self._forward_graphed = GraphedFunction(self._forward, self.model.device)

    def _overwrite(self, state: State) -> None:
        for part, new in zip(self.state, state, strict=True):
            if new is not part:
                part.copy_(new)

    def _forward(self, tokens_B: Tensor) -> tuple[Tensor]:
        logits, state = self.model(tokens_B[:, None], self.state)
        assert state is not None
        self._overwrite(state)
        return (logits[:, -1].float(),)

    def step(self, ids_B: Ints) -> Floats32:
        tokens = torch.zeros(len(self.state[0]), dtype=torch.int64)
        tokens.numpy()[self.slots] = ids_B
        with torch.inference_mode():
            (logits_BV,) = self._forward_graphed(tokens)
            return logits_BV.cpu().numpy()[self.slots]

    def select_rows(self, rows_K: Ints) -> None:
        slots = self.slots[rows_K]
        if len(np.unique(slots)) == len(slots) and 2 * len(slots) > len(self.state[0]):
            self.slots = slots
            return
        with torch.inference_mode():
            index = torch.from_numpy(slots).to(self.model.device)
            self._reset(tuple(part[index] for part in self.state))

    def drop_oldest(self, n_keep: int) -> bool:
        with torch.inference_mode():
            state = self.model.drop_oldest(self.state, n_keep)
            if state is not None:
                self._overwrite(state)
        return state is not None
