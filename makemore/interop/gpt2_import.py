"""Import GPT-2 weights, as named by Hugging Face, nanoGPT and makemore.py, into a transformer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from makemore.errors import UserError
from makemore.interop.gpt2 import is_matrix, layer_names

GPT2_TOKENS = 50256
"""Size of GPT-2's vocabulary without the token between documents, which comes last."""


def from_gpt2(
    tensors: Mapping[str, Tensor], settings: dict[str, Any], transposed: bool
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and weights of the transformer, with the rows of the vocabulary in their original order.

    ``settings``: at least n_head. ``transposed``: matrices are stored as (inputs, outputs). Missing biases
    become zeros. Raises UserError if a weight is missing.
    """
    by_name = {_strip_prefixes(name): tensor.float() for name, tensor in tensors.items()}
    if "wte.weight" not in by_name or "wpe.weight" not in by_name:
        raise UserError("these aren't GPT-2 weights: wte.weight or wpe.weight is missing")
    n_layer = len({name.split(".")[1] for name in by_name if name.startswith("h.")})
    width = by_name["wte.weight"].shape[1]
    weights: dict[str, Tensor] = {}
    for ours, theirs in layer_names(n_layer).items():
        matrix = _require(by_name, f"{theirs}.weight")
        weights[f"{ours}.weight"] = matrix.T if transposed and is_matrix(f"{theirs}.weight") else matrix
        if ours not in ("embedding", "positions"):
            rows = len(weights[f"{ours}.weight"])
            weights[f"{ours}.bias"] = by_name.get(f"{theirs}.bias", torch.zeros(rows))
    weights["head.weight"] = by_name.get("lm_head.weight", weights["embedding.weight"])
    model_settings = {
        "style": "gpt2",
        "n_layer": n_layer,
        "n_embd": width,
        "block_size": len(weights["positions.weight"]),
        "tie": torch.equal(weights["head.weight"], weights["embedding.weight"]),
        **settings,
    }
    return model_settings, weights


def reorder_vocabulary(weights: dict[str, Tensor], rows: list[int]) -> dict[str, Tensor]:
    """Reorder the vocabulary: row ``i`` of the embedding and head becomes their row ``rows[i]``."""
    index = torch.tensor(rows)
    return weights | {name: weights[name][index] for name in ("embedding.weight", "head.weight")}


def _strip_prefixes(name: str) -> str:
    for prefix in ("_orig_mod.", "module.", "transformer."):
        name = name.removeprefix(prefix)
    return name


def _require(tensors: dict[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise UserError(f"the weights are incomplete: {name} is missing")
    return tensors[name]
