"""Context mixing for a page: its weights and the training text, which ``context_mixing.js`` counts again."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import numpy as np

from makemore.errors import UserError
from makemore.interop.html.package import Package
from makemore.models.context_mixing import memory
from makemore.models.context_mixing.model import ContextMixing

MAX_TOKENS = 1 << 22
"""Maximum length of a training text: pages of longer ones are large and take half a minute to open."""


def describe_context_mixing(model: ContextMixing, package: Package) -> dict[str, Any]:
    """The model for ``context_mixing.js``; its arrays and training text are appended to the package.

    Raises UserError if the training text has more than ``MAX_TOKENS`` tokens.
    """
    _ = model.engine  # creates the arrays of an untrained model
    arrays = {name: buffer.numpy() for name, buffer in model.named_buffers()}
    counters, V = arrays["counters"], model.vocab_size
    n_tokens = int(counters[memory.N_HISTORY])
    if n_tokens >= min(MAX_TOKENS, len(arrays["history"])):
        raise UserError(
            f"--format html can't hold {model.config.name} trained on {n_tokens:,} tokens: a page contains "
            f"the training text, of at most {MAX_TOKENS:,} tokens; train on less text"
        )
    text = np.append(arrays["history"][:n_tokens], counters[memory.LAST_TARGET])
    tree = memory.tree_of(arrays, model.boundary_id)
    cells = np.zeros_like(arrays["cells"])
    cells[:, 2] = arrays["cells"][:, 2]  # a frozen model reads only their logits
    columns = {
        "kinds": arrays["kinds_V"],
        "folded": arrays["folded_V"],
        "rank_of": arrays["rank_V"],
        "token_of": np.argsort(arrays["rank_V"]),
        "left": arrays["left_V"],
        "right": arrays["right_V"],
        "logs": memory.LOGS,
        "levels": memory.COUNT_LEVELS,
        "cells": cells,
        "history": text.astype(np.uint8 if V <= 1 << 8 else np.uint16 if V <= 1 << 16 else np.int32),
        "code": np.frombuffer(files(__package__).joinpath("context_mixing.wasm").read_bytes(), np.uint8),
    }
    matrices = ("weights", "by_node", "by_order", "node_cells")
    return {
        "kind": "context-mixing",
        "vocab_size": V,
        **{name: int(value) for name, value in tree._asdict().items()},
        "has_boundary": int(counters[memory.HAS_BOUNDARY]),
        "rows": memory.set_rows(V),
        "n_slots": len(arrays["slots"]),
        "lists_size": memory.lists_size(len(arrays["slots"])),
        "history_size": len(arrays["history"]),
        "match_slots": arrays["match_table"].shape[1],
        "tokens": n_tokens,
        **{name: package.array(values) for name, values in columns.items()},
        **{name: package.matrix(arrays[name]) for name in matrices},
        "apms": package.matrix(arrays["apms"].reshape(-1, memory.BINS)),
    }
