"""GPT-2 weights, as Hugging Face, nanoGPT and makemore name them, for the transformer's GPT-2 style."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from makemore.errors import UserError
from makemore.interop.gpt2 import is_matrix, layer_names

GPT2_TOKENS = 50256
"""Of GPT-2's tokenizer; the token between documents comes after them."""


def from_gpt2(
    tensors: Mapping[str, Tensor], settings: dict[str, Any], transposed: bool
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The transformer's settings and weights, rows of the vocabulary as they were.

    ``settings``: at least n_head. ``transposed``: matrices are kept as (inputs, outputs). Biases that
    aren't there are zeros. Raises UserError where a weight is missing or has another shape.
    """
    found = {_plain(name): tensor.float() for name, tensor in tensors.items()}
    if "wte.weight" not in found or "wpe.weight" not in found:
        raise UserError("these aren't GPT-2's weights: there is no wte.weight or wpe.weight among them")
    n_layer = len({name.split(".")[1] for name in found if name.startswith("h.")})
    width = found["wte.weight"].shape[1]
    weights: dict[str, Tensor] = {}
    for ours, theirs in layer_names(n_layer).items():
        matrix = _take(found, f"{theirs}.weight")
        weights[f"{ours}.weight"] = matrix.T if transposed and is_matrix(f"{theirs}.weight") else matrix
        if ours not in ("embedding", "positions"):
            rows = len(weights[f"{ours}.weight"])
            weights[f"{ours}.bias"] = found.get(f"{theirs}.bias", torch.zeros(rows))
    weights["head.weight"] = found.get("lm_head.weight", weights["embedding.weight"])
    model = {
        "style": "gpt2",
        "n_layer": n_layer,
        "n_embd": width,
        "block_size": len(weights["positions.weight"]),
        "tie": torch.equal(weights["head.weight"], weights["embedding.weight"]),
        **settings,
    }
    return model, weights


def with_rows(weights: dict[str, Tensor], rows: list[int]) -> dict[str, Tensor]:
    """The weights with our order of the vocabulary: of each of our ids, the row it had."""
    picked = torch.tensor(rows)
    return weights | {name: weights[name][picked] for name in ("embedding.weight", "head.weight")}


def _plain(name: str) -> str:
    """Without a compiler's or a wrapper's prefix."""
    for prefix in ("_orig_mod.", "module.", "transformer."):
        name = name.removeprefix(prefix)
    return name


def _take(found: dict[str, Tensor], name: str) -> Tensor:
    if name not in found:
        raise UserError(f"these weights aren't whole: {name} is missing")
    return found[name]
