"""The C code of context mixing: structs that point to the model's arrays."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator
from ctypes import POINTER, byref, c_float, c_int64, c_void_p
from pathlib import Path

import numpy as np
import torch

from makemore.models.context_mixing import memory
from makemore.models.context_mixing.engine_base import Engine, Rates
from makemore.runtime.native import CLibrary, address, parallel_map, structure
from makemore.types import Floats, Floats32, Ints

MIN_TOKENS_PER_THREAD = 16
"""Tokens below which another thread isn't worth starting."""

_Table = structure(
    "Table",
    slots=c_void_p,
    lists=c_void_p,
    **dict.fromkeys(("n_buckets", "lists_size"), c_int64),
    counters=c_void_p,
)
_Mixer = structure(
    "Mixer",
    weights=c_void_p * memory.N_SETS,
    **dict.fromkeys(("by_node", "by_order", "apms"), c_void_p),
    **dict.fromkeys(("lr", "apm_lr"), c_float),
)
_Model = structure(
    "Model",
    **dict.fromkeys(
        ("vocab_size", "boundary", "root", "boundary_node", "boundary_side", "has_boundary"), c_int64
    ),
    **dict.fromkeys(("kinds", "folded", "rank_of", "token_of", "left", "right"), c_void_p),
    table=_Table,
    n_history=c_void_p,
    **dict.fromkeys(("history_size", "match_slots"), c_int64),
    **dict.fromkeys(("history", "match_table", "logs", "levels", "cells", "node_cells"), c_void_p),
    mixer=_Mixer,
    set_rows=c_int64 * memory.N_SETS,
)
_Position = structure("Position", fields=c_int64 * memory.POSITION_SIZE)
LIBRARY = CLibrary(
    Path(__file__).with_name("engine.c"),
    {
        "read_tokens": (None, POINTER(_Model), *[c_void_p] * 4, *[c_int64] * 3, c_void_p),
        "distributions": (None, POINTER(_Model), c_int64, c_int64, *[c_void_p] * 3),
        "sample": (None, POINTER(_Model), c_int64, *[c_void_p] * 3),
    },
    {"model": _Model, "position": _Position},
)


class NativeEngine(Engine):
    """The arrays in a C struct."""

    def __init__(self, arrays: memory.Arrays, boundary_id: int, code: ctypes.CDLL) -> None:
        """``code``: the loaded ``LIBRARY``."""
        self.arrays, self.code = arrays, code
        tree = memory.tree_of(arrays, boundary_id)
        self._tokens_V = np.argsort(arrays["rank_V"]).astype(np.int32)
        self._model = model = _Model(
            len(self._tokens_V), boundary_id, tree.root, tree.boundary_node, tree.boundary_side
        )
        counters, slots = arrays["counters"], arrays["slots"]
        model.has_boundary = counters[memory.HAS_BOUNDARY]
        model.n_history = address(counters[memory.N_HISTORY :])
        model.history_size, model.match_slots = len(arrays["history"]), arrays["match_table"].shape[1]
        model.table.slots, model.table.n_buckets = address(slots), len(slots) // memory.SLOTS
        model.table.lists, model.table.lists_size = address(arrays["lists"]), len(arrays["lists"])
        model.table.counters = address(counters)
        names = {
            "kinds": "kinds_V",
            "folded": "folded_V",
            "rank_of": "rank_V",
            "left": "left_V",
            "right": "right_V",
        }
        for field in ("history", "match_table", "cells", "node_cells", *names):
            setattr(model, field, address(arrays[names.get(field, field)]))
        model.token_of, model.logs, model.levels = map(
            address, (self._tokens_V, memory.LOGS, memory.COUNT_LEVELS)
        )
        for field in ("by_node", "by_order", "apms"):
            setattr(model.mixer, field, address(arrays[field]))
        rows = memory.set_rows(model.vocab_size)
        for i, begin in enumerate(np.cumsum([0, *rows[:-1]])):
            model.mixer.weights[i], model.set_rows[i] = address(arrays["weights"][begin:]), rows[i]

    def read(
        self,
        position: Ints,
        inputs_N: Ints,
        targets_N: Ints,
        rates: Rates | None,
        counts: bool,
        logits_NV: Floats32 | None = None,
    ) -> Floats:
        nats_N = np.zeros(len(inputs_N))
        if rates is not None:
            self._model.mixer.lr, self._model.mixer.apm_lr = rates
        tokens = map(address, (position, inputs_N, targets_N, nats_N))
        flags = (rates is not None, counts)
        logits = None if logits_NV is None else address(logits_NV)
        self.code.read_tokens(byref(self._model), *tokens, len(inputs_N), *flags, logits)
        return nats_N

    def distributions(self, tokens_BT: Ints, positions_BP: Ints) -> Floats32:
        logits_BTV = np.empty((*tokens_BT.shape, self._model.vocab_size), np.float32)
        parts = list(self._divided(tokens_BT, positions_BP, logits_BTV))
        parallel_map(lambda i, _: self._distribute(*parts[i]), len(parts), len(parts))
        return logits_BTV

    def _divided(
        self, tokens_BT: Ints, positions_BP: Ints, logits_BTV: Floats32
    ) -> Iterator[tuple[Ints, Ints, Floats32]]:
        """Divide a call among threads: by rows or, if there are few, each row into stretches of tokens. Where
        a stretch begins is found first, by reading the tokens before it without predicting."""
        (rows, length), threads = tokens_BT.shape, torch.get_num_threads()
        threads = max(1, min(threads, tokens_BT.size // MIN_TOKENS_PER_THREAD))
        if rows >= threads:
            edges = [rows * i // threads for i in range(threads + 1)]
            for part in itertools.starmap(slice, itertools.pairwise(edges)):
                yield tokens_BT[part], positions_BP[part], logits_BTV[part]
            return
        edges = [length * i // threads for i in range(threads + 1)]
        for row in range(rows):
            for part in itertools.starmap(slice, itertools.pairwise(edges)):
                tokens = tokens_BT[row : row + 1, part]
                yield tokens, positions_BP[row : row + 1].copy(), logits_BTV[row : row + 1, part]
                self._distribute(tokens, positions_BP[row : row + 1], None)

    def _distribute(self, tokens_BT: Ints, positions_BP: Ints, logits_BTV: Floats32 | None) -> None:
        arrays = (address(tokens_BT), address(positions_BP), address(logits_BTV))
        self.code.distributions(byref(self._model), *tokens_BT.shape, *arrays)

    def sample(self, positions_BP: Ints, uniform_B: Floats) -> Ints:
        ids_B = np.empty(len(positions_BP), np.int64)
        arrays = (positions_BP, uniform_B, ids_B)
        self.code.sample(byref(self._model), len(ids_B), *map(address, arrays))
        return ids_B
