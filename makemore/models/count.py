"""Smoothed n-gram counts, a strong baseline that needs no gradients.

All smoothing methods have the same form: a context assigns probability to the continuations seen after
it and passes the rest on to the distribution of a shorter context, down to the uniform distribution.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from makemore.models.base import CountModel
from makemore.models.ngrams.builder import TableBuilder, empty_table, merge_tables
from makemore.models.ngrams.counter import NgramCounter, estimate_sizes
from makemore.models.ngrams.packed import PackedCounts
from makemore.models.ngrams.table import ABSENT, NgramTable
from makemore.models.smoothing import CountConfig, SmoothedNgrams, losses_by_order
from makemore.settings import CorpusStats, Recipe
from makemore.types import IGNORE_INDEX, Batch, Ints, State

DENSE_CHUNK_SIZE = 1 << 17
"""Probabilities computed per chunk, sized to fit the CPU's cache."""
BYTES_PER_NGRAM = 20
"""Memory that an n-gram takes while it is counted, smoothed, saved and sampled, by measurement."""
MAX_NGRAMS = 28_000_000
"""Limit on a table whose order is chosen; the highest order is lowered until the table is smaller."""


class Count(CountModel):
    """N-gram model; the table stays in main memory on every device."""

    Config: ClassVar[type[CountConfig]] = CountConfig
    memory_setting = "model.max_order"
    summary = "n-gram counts, by default with modified Kneser-Ney smoothing"
    _smoothed: SmoothedNgrams | None

    def __init__(self, config: CountConfig, vocab_size: int, boundary_id: int) -> None:
        super().__init__(config, vocab_size, boundary_id)
        self.order = config.order or config.max_order
        self.max_len = max(self.order - 1, 1)
        # The last tokens of each counted row, so that training can resume in mid-document.
        self.register_buffer("ends", self._empty_context(0))
        self.ends: Tensor
        self._set_table(empty_table(self.order, vocab_size, boundary_id))

    @property
    def max_ngrams(self) -> int | None:
        """Limit on the size of the table, if its order is chosen."""
        return None if self.config.order else MAX_NGRAMS

    @property
    def table(self) -> NgramTable:
        """Table of everything counted so far."""
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
        batches = iter(held_out)
        first = next(batches, None)
        if not self.config.order and first is not None:
            order, _ = self.best_order(itertools.chain([first], batches))
            self._set_order(order)
        # A document longer than a batch is its only row; keep its context, since a resumed run may continue.
        context = self.ends[:, self.ends.shape[1] - self.order + 1 :]
        self.ends = context.clone() if len(context) == 1 else self._empty_context(0)
        _ = self.smoothed

    def best_order(self, held_out: Iterable[Batch]) -> tuple[int, float]:
        """The order with the lowest loss on held-out batches, and this loss in nats per token.

        For lines, order 1 isn't considered: it doesn't see where a line begins, so it would generate blank
        lines.
        """
        losses = self.losses_by_order(held_out)
        if len(losses) > 1 and self.table.counts(1)[self.boundary_id]:
            del losses[1]
        order = min(losses, key=losses.__getitem__)
        return order, losses[order]

    def _set_order(self, order: int) -> None:
        table = self.table.cut(order)
        self.config = self.config.replace(order=order)
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
        smoothed = self.smoothed
        contexts = [
            nodes_N.reshape(B, n_past + T)[:, n_past:].ravel()
            for nodes_N in smoothed.table.contexts(rows_BL.flatten().cpu().numpy())
        ]
        logits = torch.empty(B * T, V)
        chunk = max(1, DENSE_CHUNK_SIZE // V)
        with np.errstate(divide="ignore"):  # log 0 without smoothing
            for i in range(0, B * T, chunk):
                p_NV = smoothed.dense([nodes_N[i : i + chunk] for nodes_N in contexts])
                logits[i : i + chunk] = torch.from_numpy(np.log(p_NV, out=p_NV))
        new_state = None if state is None else (rows_BL[:, T + 1 :],)
        return logits.view(B, T, V).to(tokens_BT.device), new_state

    def losses_by_order(self, batches: Iterable[Batch]) -> dict[int, float]:
        """Mean loss in nats per token for each order up to this one, without recounting.

        Takes batches like ``count_batch`` and holds them all in memory, about 40 bytes per token.
        """
        rows, ends = [], self._empty_context(0)
        for batch in batches:
            inputs_N, targets_N, ends = self._flatten(batch, ends)
            rows.append((inputs_N.astype(np.int32), targets_N.astype(np.int32)))
        inputs_N, targets_N = (np.concatenate(part) for part in zip(*rows, strict=True))
        return losses_by_order(self.table, self.config, inputs_N, targets_N)

    def n_parameters(self) -> int:
        """Number of stored counts."""
        return self.table.size

    @classmethod
    def memory_needed(
        cls, config: CountConfig, tokens_N: np.ndarray, vocab_size: int, boundary_id: int, negligible: float
    ) -> tuple[str, float]:
        order = config.order or config.max_order
        n_grams: float = len(tokens_N) * order
        if n_grams * BYTES_PER_NGRAM >= negligible:
            n_grams = sum(estimate_sizes(tokens_N, order, vocab_size, boundary_id))
            n_grams = n_grams if config.order else min(n_grams, MAX_NGRAMS)
        return f"about {n_grams:,.0f} n-grams", n_grams * BYTES_PER_NGRAM

    @classmethod
    def recipe(cls, stats: CorpusStats) -> Recipe:
        train = cls.default_train_config(stats, optimizer="none", batch_tokens=1 << 16)
        # All orders are counted before one is chosen: n-grams that never recur only cost memory.
        max_order = 12 if stats.train_tokens < 20_000_000 else 6
        return Recipe(CountConfig(max_order=max_order), train)

    @property
    def smoothed(self) -> SmoothedNgrams:
        table = self.table
        if self._smoothed is None:
            self._smoothed = SmoothedNgrams(table, self.config.replace(order=table.order))
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
        self._table, self._smoothed = table, None
        self._counter = NgramCounter(table, self.max_ngrams)
        device = self.device
        for name, tensor in table_tensors(table).items():
            self.register_buffer(name, tensor.to(device))

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        _ = self.table  # counts pending batches
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Accept tables of any size, and report invalid ones as errors of ``load_state_dict``."""
        errors: list[str] = args[4]
        try:
            if f"{prefix}keys_1" in state_dict:
                self._convert_levels(state_dict, prefix)
            for name, buffer in self.named_buffers():
                stored = state_dict.get(prefix + name, buffer)
                if stored.dtype != buffer.dtype:
                    raise ValueError(f"{name}: expected {buffer.dtype}, found {stored.dtype}")
                if stored.shape[1:] == buffer.shape[1:]:
                    setattr(self, name, torch.empty_like(stored, device=buffer.device))
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
            table = self._loaded_table()
            table.validate()
            self._set_table(table)
        except ValueError as error:
            errors.append(f"{prefix}counts: {error}")

    def _loaded_table(self) -> NgramTable:
        sizes, tokens_G, first_C, bytes_G, large = (
            self.get_buffer(name).cpu().numpy()
            for name in ("sizes", "tokens", "first", "counts", "large_counts")
        )
        arrays = (tokens_G, first_C, PackedCounts(bytes_G, large))
        return NgramTable(self.vocab_size, self.boundary_id, tuple(sizes.tolist()), *arrays)

    def _convert_levels(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Replace the arrays of a run of an earlier version, which had some for each length, by today's."""
        size = sum(t.numel() for name, t in state_dict.items() if name.startswith(prefix))
        n_contexts, builder = 1, TableBuilder(self.vocab_size, self.boundary_id, size)
        for n in range(1, self.order + 1):
            stored = (state_dict.pop(f"{prefix}{kind}_{n}", None) for kind in ("keys", "counts"))
            keys, counts = (np.zeros(0, np.int64) if t is None else t.cpu().numpy() for t in stored)
            edges = np.concatenate([[-1], keys, [n_contexts * self.vocab_size]])
            is_valid = keys.dtype == counts.dtype == np.int64 and keys.shape == counts.shape
            if not is_valid or (np.diff(edges) <= 0).any() or counts.min(initial=0) < 0:
                raise ValueError(f"{n}-grams: the keys or counts are damaged")
            builder.add_level(keys, counts)
            n_contexts = len(keys)
        table = builder.build()
        table.validate()
        start = empty_table(self.order, self.vocab_size, self.boundary_id)
        arrays = table_tensors(merge_tables(table, start))
        state_dict.update({prefix + name: array for name, array in arrays.items()})


def table_tensors(table: NgramTable) -> dict[str, Tensor]:
    """The arrays of a table, as a model's buffers."""
    arrays = {
        "sizes": np.array(table.sizes),
        "tokens": table.tokens_G,
        "first": table.first_C,
        "counts": table.counts_G.bytes_G,
        "large_counts": table.counts_G.large,
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
