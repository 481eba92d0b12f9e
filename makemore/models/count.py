"""Smoothed n-gram counts: the best that can be done without gradients.

All smoothing methods have the same form: a context assigns probability to the continuations seen after
it and passes the rest on to the distribution of a shorter context, down to the uniform distribution.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from makemore.models.base import CountModel
from makemore.models.ngrams import ABSENT, Ints, NgramCounter, NgramTable
from makemore.settings import CorpusStats, Recipe, setting
from makemore.types import IGNORE_INDEX, Batch, State

Floats = NDArray[np.float64]

DENSE_CHUNK_SIZE = 1 << 17
"""Probabilities computed per chunk, sized to fit the CPU's cache."""


@dataclass(frozen=True)
class CountConfig:
    """Settings of ``count``."""

    order: int = setting(0, "longest n-gram in tokens (0: choose the best on val, up to max_order)")
    smoothing: Literal["kneser-ney", "additive", "recursive-additive"] = setting(
        "kneser-ney", "how unseen continuations get probability"
    )
    alpha: float = setting(1.0, "smoothing constant of the additive methods (0: none)")
    max_order: int = setting(12, "longest n-gram counted when order is 0")

    def __post_init__(self) -> None:
        if not 0 <= self.order <= 12 or not 1 <= self.max_order <= 12:
            raise ValueError("order must be from 0 to 12, max_order from 1 to 12")
        if self.smoothing not in ("kneser-ney", "additive", "recursive-additive"):
            raise ValueError("smoothing must be kneser-ney, additive or recursive-additive")
        if not 0 <= self.alpha < float("inf"):
            raise ValueError("alpha must be finite and not negative")


class SmoothedLevel(NamedTuple):
    """Lookup tables for one order of a smoothed model.

    G n-grams, C contexts. All arrays but ``tokens`` have two extra entries at the end, which numpy finds
    under ABSENT (-1) and UNSEEN (-2): no probability, no n-grams, everything to the shorter context.
    """

    shares: Floats
    """(G + 2,): probability each n-gram adds to that from the shorter context."""
    tokens: Ints
    """(G,): last token of each n-gram."""
    backoff_weights: Floats
    """(C + 2,): weight of the shorter context's distribution, by context."""
    first_child: Ints
    """(C + 2,): index of each context's first n-gram."""
    children: Ints
    """(C + 2,): number of n-grams of each context."""


class SmoothedNgrams:
    """Smoothed probabilities of an n-gram table in float64; the config may have a lower order."""

    def __init__(self, table: NgramTable, config: CountConfig) -> None:
        self.table = table
        self.uniform = 1 / table.vocab_size
        self.backs_off = config.smoothing != "additive"
        self.levels = [
            _build_level(table, m, discounted_G, backoff_C)
            for m, (discounted_G, backoff_C) in enumerate(_smooth(table, config))
        ]
        root = np.zeros(1, np.int64)
        start = np.full((1, table.vocab_size), self.uniform)
        self.unigram_1V = self._interpolate(self.levels[0], root, start)

    def dense(self, contexts: list[Ints]) -> Floats:
        """Distributions (N, V) after ``contexts``, as returned by ``NgramTable.contexts``."""
        p_NV = np.repeat(self.unigram_1V, len(contexts[0]), axis=0)
        for level, nodes_N in zip(self.levels[1:], contexts[1:], strict=False):
            p_NV = self._interpolate(level, nodes_N, p_NV)
        return p_NV

    def target_probs(self, contexts: list[Ints], targets_N: Ints) -> Floats:
        """Probability (N,) of each target after its context."""
        p_N = np.full(len(targets_N), self.uniform)
        for m, (level, nodes_N) in enumerate(zip(self.levels, contexts, strict=False)):
            if not self.backs_off:
                p_N[nodes_N != ABSENT] = self.uniform
            grams_N = self.table.find(m, nodes_N, targets_N)
            p_N = p_N * level.backoff_weights[nodes_N] + level.shares[grams_N]
        return p_N

    def _interpolate(self, level: SmoothedLevel, nodes_N: Ints, p_NV: Floats) -> Floats:
        """Turn the shorter contexts' distributions into those of ``nodes_N``, in place."""
        if not self.backs_off:
            p_NV[nodes_N != ABSENT] = self.uniform
        p_NV *= level.backoff_weights[nodes_N, None]
        children_N = level.children[nodes_N]
        ends_N = np.cumsum(children_N)
        total = int(ends_N[-1]) if len(ends_N) else 0
        # A context's n-grams are adjacent: enumerate all of them, then shift each row's range.
        shifts_N = level.first_child[nodes_N] - (ends_N - children_N)
        grams = np.arange(total) + np.repeat(shifts_N, children_N)
        row_starts = np.repeat(np.arange(len(nodes_N)) * p_NV.shape[1], children_N)
        p_NV.reshape(-1)[row_starts + level.tokens[grams]] += level.shares[grams]
        return p_NV


def _build_level(table: NgramTable, m: int, discounted_G: Floats, backoff_C: Floats) -> SmoothedLevel:
    """Normalise discounted counts and the mass each context backs off."""
    nodes_G, token_G = table.split_keys(m)
    total_C = np.bincount(nodes_G, weights=discounted_G, minlength=len(backoff_C)) + backoff_C
    seen_C = total_C > 0
    total_C[~seen_C] = 1.0  # no counts: everything goes to the shorter context
    backoff_weight_C = np.where(seen_C, backoff_C / total_C, 1.0)
    children_C = np.bincount(nodes_G, minlength=len(backoff_C))
    return SmoothedLevel(
        shares=np.append(discounted_G / total_C[nodes_G], [0.0, 0.0]),
        tokens=token_G,
        backoff_weights=np.append(backoff_weight_C, [1.0, 1.0]),
        first_child=np.append(np.cumsum(children_C) - children_C, [0, 0]),
        children=np.append(children_C, [0, 0]),
    )


def _smooth(table: NgramTable, config: CountConfig) -> list[tuple[Floats, Floats]]:
    """For each level: discounted counts of the n-grams, and the mass each context backs off."""
    if config.smoothing == "kneser-ney":
        return _kneser_ney(table, config.order)
    prior = config.alpha * (table.vocab_size if config.smoothing == "additive" else 1)
    n_contexts = [1, *map(len, table.keys)]
    return [(table.counts[m].astype(np.float64), np.full(n_contexts[m], prior)) for m in range(config.order)]


def _kneser_ney(table: NgramTable, order: int) -> list[tuple[Floats, Floats]]:
    """Interpolated modified Kneser-Ney (Chen & Goodman 1998, "An Empirical Study of Smoothing
    Techniques for Language Modeling"): separate discounts for counts of 1, 2 and at least 3.

    Lower orders use continuation counts, the number of distinct tokens seen before an n-gram. An order
    whose discounts can't be estimated uses those of the next higher order, whose n-grams are rarer.
    """
    counts = [*table.continuations[: order - 1], table.counts[order - 1]]
    result: list[tuple[Floats, Floats]] = []
    discounts = np.array([0.5, 1.0, 1.5])
    n_contexts = [1, *map(len, table.keys)]
    for m in reversed(range(order)):
        discounts = estimate_discounts(counts[m], discounts)
        discount_G = np.append(0.0, discounts)[np.minimum(counts[m], 3)]
        nodes_G = table.keys[m] // table.vocab_size
        backoff_C = np.bincount(nodes_G, weights=discount_G, minlength=n_contexts[m])
        result.append((counts[m].astype(np.float64) - discount_G, backoff_C.astype(np.float64)))
    return result[::-1]


def estimate_discounts(counts_G: Ints, fallback: Floats) -> Floats:
    """Discounts for counts of 1, 2 and at least 3, from how many n-grams have counts 1, 2, 3 and 4.

    With a small alphabet few short n-grams are rare, and the estimate fails. Then all three are the single
    discount of Ney, Essen & Kneser (1994), or ``fallback`` if no n-gram has count 1 or none has count 2.
    """
    n = np.bincount(np.minimum(counts_G, 5), minlength=6)[1:5].astype(np.float64)
    if n[0] == 0 or n[1] == 0:
        return fallback
    single = n[0] / (n[0] + 2 * n[1])
    if n[2] > 0:
        k = np.arange(1, 4)
        discounts = k - (k + 1) * single * n[1:] / n[:3]
        if n[3] > 0 and (discounts > 0).all():
            return discounts
    return np.full(3, single)


class Count(CountModel):
    """N-gram model; the table stays in main memory on every device."""

    Config: ClassVar[type] = CountConfig
    summary = "n-gram counts, by default with modified Kneser-Ney smoothing"
    _smoothed: SmoothedNgrams | None

    def __init__(self, config: CountConfig, vocab_size: int, boundary_id: int) -> None:
        super().__init__(config, vocab_size, boundary_id)
        self.order = config.order or config.max_order
        self.max_len = max(self.order - 1, 1)
        # The last tokens of each observed row, so that training can resume in mid-document.
        self.register_buffer("ends", self._empty_context(0))
        self.ends: Tensor
        self._set_table(NgramTable.empty(self.order, vocab_size, boundary_id))

    @property
    def table(self) -> NgramTable:
        """Table of everything observed so far."""
        table = self._counter.table()
        if table is not self._table:
            self._set_table(table)
        return table

    def count_batch(self, batch: Batch) -> None:
        """Count a batch's targets. Raises ValueError if it continues a different number of rows."""
        inputs_N, targets_N, self.ends = self._flatten(batch, self.ends)
        self._counter.add(inputs_N, targets_N)

    def finish(self, held_out: Iterable[Batch] = ()) -> None:
        """If ``order`` is 0, choose the order with the lowest loss on the held-out batches."""
        batches = list(held_out)
        if not self.config.order and batches:
            losses = self.losses_by_order(batches)
            self._set_order(min(losses, key=losses.__getitem__))
        self.ends = self._empty_context(0)
        _ = self.smoothed

    def _set_order(self, order: int) -> None:
        table = self.table.cut(order)
        for n in range(order + 1, self.order + 1):
            del self._buffers[f"keys_{n}"], self._buffers[f"counts_{n}"]
        self.config = replace(self.config, order=order)
        self.order, self.max_len = order, max(order - 1, 1)
        self._set_table(table)

    def init_state(self, batch_size: int, capacity: int) -> State:
        """The last order - 1 tokens, (B, order - 1) int64, initially ABSENT."""
        return (self._empty_context(batch_size),)

    def forward(
        self, tokens_BT: Tensor, state: State | None = None, valid_BT: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        """Log-probabilities, computed in float64 and returned in float32."""
        (B, T), V = tokens_BT.shape, self.vocab_size
        past = self._empty_context(B) if state is None else state[0]
        rows_BL = torch.cat([past.new_full((B, 1), ABSENT), past, tokens_BT], dim=1)
        n_past = rows_BL.shape[1] - T
        contexts = [
            nodes_N.reshape(B, n_past + T)[:, n_past:].ravel()
            for nodes_N in self.table.contexts(rows_BL.flatten().cpu().numpy())
        ]
        smoothed = self.smoothed
        logits = torch.empty(B * T, V)
        chunk = max(1, DENSE_CHUNK_SIZE // V)
        with np.errstate(divide="ignore"):  # log 0 without smoothing
            for i in range(0, B * T, chunk):
                p_NV = smoothed.dense([nodes_N[i : i + chunk] for nodes_N in contexts])
                logits[i : i + chunk] = torch.from_numpy(np.log(p_NV, out=p_NV))
        new_state = None if state is None else (rows_BL[:, T + 1 :],)
        return logits.view(B, T, V).to(tokens_BT.device), new_state

    def with_order(self, order: int) -> Count:
        """The model of a lower order, sharing this one's counts."""
        if not 1 <= order <= self.order:
            raise ValueError(f"order must be from 1 to {self.order}")
        model = Count(replace(self.config, order=order), self.vocab_size, self.boundary_id)
        model._set_table(self.table.cut(order))
        return model

    def losses_by_order(self, batches: Iterable[Batch]) -> dict[int, float]:
        """Mean loss in nats per token for each order up to this one, without recounting.

        Takes batches like ``count_batch`` and holds them all in memory, about 100 bytes per token.
        """
        rows, ends = [], self._empty_context(0)
        for batch in batches:
            inputs_N, targets_N, ends = self._flatten(batch, ends)
            rows.append((inputs_N, targets_N))
        inputs_N, targets_N = (np.concatenate(part) for part in zip(*rows, strict=True))
        scored_N = targets_N != IGNORE_INDEX
        contexts = [nodes_N[scored_N] for nodes_N in self.table.contexts(inputs_N)]
        losses: dict[int, float] = {}
        with np.errstate(divide="ignore"):
            for order in range(1, self.order + 1):
                smoothed = SmoothedNgrams(self.table, replace(self.config, order=order))
                p_N = smoothed.target_probs(contexts[:order], targets_N[scored_N])
                losses[order] = float(-np.log(p_N).mean())
        return losses

    def n_parameters(self) -> int:
        """Number of stored counts."""
        return self.table.size

    @classmethod
    def recipe(cls, facts: CorpusStats) -> Recipe:
        train = cls.default_train_config(facts, optimizer="none", batch_tokens=1 << 16)
        # All orders are counted before one is chosen: n-grams that never recur only cost memory.
        max_order = 12 if facts.train_tokens < 20_000_000 else 6
        return Recipe(CountConfig(max_order=max_order), train)

    @property
    def smoothed(self) -> SmoothedNgrams:
        table = self.table
        if self._smoothed is None:
            self._smoothed = SmoothedNgrams(table, replace(self.config, order=self.order))
        return self._smoothed

    def _empty_context(self, n_rows: int) -> Tensor:
        return torch.full((n_rows, self.order - 1), ABSENT, device=self.device)

    def _flatten(self, batch: Batch, ends: Tensor) -> tuple[Ints, Ints, Tensor]:
        """Concatenate a batch's rows, each preceded by its context from ``ends``.

        Returns inputs (N,), targets (N,) and the new ``ends``. Raises ValueError if the batch continues a
        different number of rows.
        """
        inputs_BT, targets_BT = batch.inputs_BT.to(self.device), batch.targets_BT
        B, order = len(inputs_BT), self.order
        if not batch.continues:
            ends = self._empty_context(B)
        elif len(ends) != B:
            raise ValueError(f"a batch of {B} rows can't continue a batch of {len(ends)} rows")
        rows_BL = torch.cat([ends.new_full((B, 1), ABSENT), ends, inputs_BT], dim=1)
        targets_BL = torch.nn.functional.pad(targets_BT, (order, 0), value=IGNORE_INDEX)
        ends = rows_BL[:, rows_BL.shape[1] - order + 1 :].clone()
        return rows_BL.flatten().cpu().numpy(), targets_BL.flatten().cpu().numpy(), ends

    def _set_table(self, table: NgramTable) -> None:
        self._table, self._counter = table, NgramCounter(table)
        self._smoothed = None
        device = self.device
        for kind, levels in (("keys", table.keys), ("counts", table.counts)):
            for n, array in enumerate(levels, start=1):
                self.register_buffer(f"{kind}_{n}", torch.from_numpy(array).to(device))

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        _ = self.table  # counts pending batches
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Accept tables of any size, and report invalid ones as errors of ``load_state_dict``."""
        errors: list[str] = args[4]
        for name, buffer in self.named_buffers():
            stored = state_dict.get(prefix + name, buffer)
            if stored.dtype != torch.int64:
                errors.append(f"{prefix}{name}: expected int64, found {stored.dtype}")
            elif stored.shape[1:] == buffer.shape[1:]:
                setattr(self, name, torch.empty_like(stored, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        orders = range(1, self.order + 1)
        arrays = {name: buffer.cpu().numpy() for name, buffer in self.named_buffers()}
        table = NgramTable(
            self.vocab_size,
            self.boundary_id,
            [arrays[f"keys_{n}"] for n in orders],
            [arrays[f"counts_{n}"] for n in orders],
        )
        try:
            table.validate()
        except ValueError as error:
            errors.append(f"{prefix}counts: {error}")
        else:
            self._set_table(table)
