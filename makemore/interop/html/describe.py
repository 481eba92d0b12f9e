"""A model as JSON for ``model.js``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from makemore.errors import UserError
from makemore.interop.html.context_mixing import describe_context_mixing
from makemore.interop.html.package import Package
from makemore.interop.html.program import Program, trace
from makemore.models.base import CountModel, LanguageModel, MixtureModel
from makemore.models.context_mixing.model import ContextMixing
from makemore.models.count import Count
from makemore.sampling.decoders.count import Trie


def describe_model(model: LanguageModel, package: Package) -> dict[str, Any]:
    """A model for ``model.js``; its arrays are appended to the package.

    Raises UserError for a model that a page can't hold.
    """
    if isinstance(model, MixtureModel):
        return _describe_mixture(model, package)
    if isinstance(model, Count):
        return _describe_count(model, package)
    if isinstance(model, ContextMixing):
        return describe_context_mixing(model, package)
    if isinstance(model, CountModel):
        raise UserError(f"--format html can't hold the model {model.config.name}")
    capacity = model.max_len or 1
    state = model.init_state(1, capacity)
    limit = None if model.supports_streaming else model.max_len

    def step(token_11: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        logits_11V, next_state = model(token_11, tuple(part.clone() for part in state))
        return (logits_11V[0, -1], *next_state)

    described = {
        "kind": "network",
        "step": package.program(trace(step, torch.tensor([[model.boundary_id]]), *state)),
        "state": [package.tensor(part) for part in state],
        "limit": limit,
        "max_len": model.max_len,
    }
    drop = None if limit is None else _trace_drop(model, limit)
    return described if drop is None else {**described, "drop": package.program(drop)}


def _trace_drop(model: LanguageModel, limit: int) -> Program | None:
    """``drop_oldest`` of a full state, or None if the state must be computed again."""
    state = model.init_state(1, limit)
    if not state or model.drop_oldest((torch.full_like(state[0], limit), *state[1:]), limit // 2) is None:
        return None
    # An array, since a tensor's value can't be read while recording.
    full: Any = np.full(1, limit)

    def drop(*others: Tensor) -> tuple[Tensor, ...]:
        kept = model.drop_oldest((full, *others), limit // 2)
        assert kept is not None
        return (torch.full((1,), limit // 2), *kept[1:])

    return trace(drop, *state[1:])


def _describe_mixture(model: MixtureModel, package: Package) -> dict[str, Any]:
    members = [describe_model(member, package) for member in model.members]

    def mix(*logits_V: Tensor) -> tuple[Tensor, ...]:
        log_probs = torch.stack([torch.log_softmax(part, -1) for part in logits_V])
        return (model.mix(log_probs),)

    example = [torch.zeros(model.vocab_size) for _ in members]
    return {"kind": "mixture", "members": members, "mix": package.program(trace(mix, *example))}


def _describe_count(model: Count, package: Package) -> dict[str, Any]:
    smoothed = model.smoothed
    if not smoothed.backs_off:
        raise UserError("--format html can't hold additive smoothing; use kneser-ney or recursive-additive")
    trie = Trie(smoothed)
    table = trie.table
    arrays = {
        "tokens": table.tokens_G,
        "first": table.first_C,
        "suffixes": trie.suffixes_G,
        "shares": trie.shares_G,
        "rests": trie.rests_C,
        "unigram": trie.unigram_V,
    }
    return {
        "kind": "count",
        "contexts": trie.n_contexts,
        "document_ends": model.document_ends,
        **{name: package.array(np.asarray(values)) for name, values in arrays.items()},
    }
