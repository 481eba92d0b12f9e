"""Token choice and generation, the same for every model, all of it incremental."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from makemore.errors import UserError
from makemore.models.base import LanguageModel
from makemore.types import State

NOISE_BLOCK = 256


@dataclass(frozen=True)
class SampleParams:
    """How to choose a token from a distribution. Raises UserError for values without meaning."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    greedy: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(f"--temperature {self.temperature:g}: must be 0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"--top-k {self.top_k}: must be 1 or more")
        for flag, value in (("--top-p", self.top_p), ("--min-p", self.min_p)):
            if value is not None and not 0 < value <= 1:
                raise UserError(f"{flag} {value:g}: must be above 0 and at most 1")


def distribution(logits_BV: Tensor, params: SampleParams) -> Tensor:
    """The probabilities that tokens are drawn from, (B, V) float64.

    Temperature first, then top-k (Fan et al. 2018), min-p (Nguyen et al. 2024) and top-p
    (Holtzman et al. 2020), each on what the one before left.
    """
    logits_BV = logits_BV.double()
    if params.greedy or params.temperature == 0:
        best = logits_BV.argmax(dim=-1, keepdim=True)
        return torch.zeros_like(logits_BV).scatter_(1, best, 1.0)
    logits_BV = logits_BV / params.temperature
    if params.top_k is not None and params.top_k < logits_BV.shape[1]:
        least = logits_BV.topk(params.top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least, -math.inf)
    probs_BV = torch.softmax(logits_BV, dim=-1)
    if params.min_p is not None:
        floor = params.min_p * probs_BV.amax(dim=-1, keepdim=True)
        probs_BV = probs_BV.masked_fill(probs_BV < floor, 0.0)
    if params.top_p is not None and params.top_p < 1:
        ordered, index = probs_BV.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(dim=-1) - ordered
        dropped = before >= params.top_p * ordered.sum(dim=-1, keepdim=True)
        probs_BV = probs_BV.masked_fill(dropped.gather(1, index.argsort(dim=-1)), 0.0)
    return probs_BV / probs_BV.sum(dim=-1, keepdim=True)


def choose(logits_BV: Tensor, params: SampleParams, uniform_B: Tensor) -> Tensor:
    """Tokens (B,) int64, drawn by inverting each row's distribution at ``uniform_B`` in [0, 1).

    Pure: a row's token depends on its own logits and number only, whatever its batch-mates.
    """
    if params.greedy or params.temperature == 0:
        return logits_BV.argmax(dim=-1)
    cumulative = distribution(logits_BV, params).cumsum(dim=-1)
    target = uniform_B.to(cumulative)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_(max=logits_BV.shape[1] - 1)


class Noise:
    """Uniform numbers of each sample, (B,) a step, from its own counter-based stream (Philox,
    Salmon et al. 2011): sample ``i`` is the same in any batch."""

    def __init__(self, seed: int, samples: range) -> None:
        keys = [np.array([seed % 2**64, i], dtype=np.uint64) for i in samples]
        self._streams = [np.random.Generator(np.random.Philox(key=key)) for key in keys]
        self._block = np.zeros((len(keys), 0))
        self._at = 0

    def next(self) -> Tensor:
        if self._at >= self._block.shape[1]:
            self._block = np.stack([stream.random(NOISE_BLOCK) for stream in self._streams])
            self._at = 0
        self._at += 1
        return torch.from_numpy(self._block[:, self._at - 1])

    def keep(self, rows: np.ndarray) -> None:
        """Go on with some of the rows only."""
        self._streams = [self._streams[i] for i in rows]
        self._block = self._block[rows]


class Decoder:
    """Feeds tokens to a model one step at a time, beyond the end of its context.

    A model whose state is full is given the last half of its context anew.
    """

    def __init__(self, model: LanguageModel, prompt_BT: Tensor, capacity: int) -> None:
        self.model = model
        self.limit = None if model.streams else model.max_len
        self.capacity = capacity if self.limit is None else min(capacity, self.limit)
        self.history_BT = prompt_BT
        self.state: State = ()

    def _restart(self, tokens_BT: Tensor) -> Tensor:
        self.state = self.model.init_state(tokens_BT.shape[0], self.capacity)
        self.used = 0
        return self._feed(tokens_BT)

    def _feed(self, tokens_BT: Tensor) -> Tensor:
        logits, state = self.model(tokens_BT, self.state)
        assert state is not None
        self.state, self.used = state, self.used + tokens_BT.shape[1]
        return logits[:, -1]

    def start(self) -> Tensor:
        """Logits (B, V) after the prompt, of which a limited context keeps the end."""
        keep = self.history_BT.shape[1]
        if self.limit is not None and keep >= self.limit:
            keep = max(1, self.limit // 2)
        return self._restart(self.history_BT[:, self.history_BT.shape[1] - keep :])

    def step(self, ids_B: Tensor) -> Tensor:
        """Logits (B, V) after one more token a row."""
        if self.limit is None:
            return self._feed(ids_B[:, None])
        self.history_BT = torch.cat([self.history_BT, ids_B[:, None]], dim=1)[:, -self.limit :]
        if self.used >= self.capacity:
            return self._restart(self.history_BT[:, -max(1, self.limit // 2) :])
        return self._feed(ids_B[:, None])

    def keep(self, rows_K: Tensor) -> None:
        """Go on with some of the rows only."""
        self.history_BT = self.history_BT[rows_K]
        self.state = tuple(part[rows_K] for part in self.state)


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompt_BT: Tensor,
    n: int,
    params: SampleParams,
    stop_id: int | None = None,
    seed: int = 0,
    first_sample: int = 0,
    ends: Callable[[int, int], bool] | None = None,
) -> Iterator[np.ndarray]:
    """Yields ids (B,) int64, up to ``n`` times; -1 in rows that ended before.

    ``prompt_BT``: int64, at least one token. A row ends with ``stop_id``, or where ``ends(row, id)``
    says so; ended rows leave the batch. Rows are samples ``first_sample`` onwards of ``seed``.
    """
    model.eval()
    rows = prompt_BT.shape[0]
    noise = Noise(seed, range(first_sample, first_sample + rows))
    decoder = Decoder(model, prompt_BT.to(model.device), prompt_BT.shape[1] + n)
    alive = np.arange(rows)
    logits_BV = decoder.start()
    for step in range(n):
        ids = choose(logits_BV, params, noise.next()).cpu()
        out = np.full(rows, -1)
        out[alive] = ids.numpy()
        yield out
        going = np.flatnonzero(_goes_on(out, alive, stop_id, ends))
        if not len(going):
            return
        if len(going) < len(alive):
            index = torch.from_numpy(going)
            decoder.keep(index.to(model.device))
            noise.keep(going)
            alive, ids = alive[going], ids[index]
        if step < n - 1:
            logits_BV = decoder.step(ids.to(model.device))


def _goes_on(
    ids: np.ndarray, alive: np.ndarray, stop_id: int | None, ends: Callable[[int, int], bool] | None
) -> np.ndarray:
    """(len(alive),) bool."""
    going = np.ones(len(alive), bool) if stop_id is None else ids[alive] != stop_id
    if ends is not None:
        going &= np.array([not ends(int(row), int(ids[row])) for row in alive], bool)
    return going
