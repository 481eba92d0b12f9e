"""Convert the GPT-2-style transformer to and from Hugging Face's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from makemore.errors import UserError
from makemore.models.transformer import Transformer, TransformerConfig
from makemore.settings import parse

MODEL_LAYERS = {"embedding": "wte", "positions": "wpe", "norm": "ln_f"}
BLOCK_LAYERS = {
    "norm1": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "norm2": "ln_2",
    "feed_forward.up": "mlp.c_fc",
    "feed_forward.down": "mlp.c_proj",
}


def layer_names(n_layer: int) -> dict[str, str]:
    """Map our layer names to GPT-2's, without the ``transformer.`` prefix and without the head."""
    blocks = {
        f"blocks.{i}.{ours}": f"h.{i}.{theirs}"
        for i in range(n_layer)
        for ours, theirs in BLOCK_LAYERS.items()
    }
    return MODEL_LAYERS | blocks


def is_matrix(name: str) -> bool:
    """Whether a GPT-2 weight belongs to a linear layer, which Hugging Face stores transposed."""
    return name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))


@torch.no_grad()
def to_gpt2(model: Transformer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and weights of a GPT2LMHeadModel with the same logits."""
    weights, c = model.state_dict(), model.config
    tensors = {}
    for ours, theirs in layer_names(c.n_layer).items():
        for kind in ("weight", "bias"):
            if f"{ours}.{kind}" in weights:
                name, tensor = f"{theirs}.{kind}", weights[f"{ours}.{kind}"]
                tensors[f"transformer.{name}"] = tensor.T if is_matrix(name) else tensor
    if not c.tie:
        tensors["lm_head.weight"] = weights["head.weight"]
    settings = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": model.vocab_size,
        "n_positions": c.block_size,
        "n_embd": c.n_embd,
        "n_layer": c.n_layer,
        "n_head": c.n_head,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": model.norm.eps,
        "resid_pdrop": c.dropout,
        "embd_pdrop": c.dropout,
        "attn_pdrop": c.dropout,
        "tie_word_embeddings": c.tie,
    }
    return settings, tensors


GPT2_TOKENS = 50256
"""Size of GPT-2's vocabulary without the token between documents, which comes last."""


def from_gpt2(
    tensors: Mapping[str, Tensor], n_head: int, transposed: bool
) -> tuple[TransformerConfig, dict[str, Tensor]]:
    """Settings and weights of the transformer, with the rows of the vocabulary in their original order.

    ``transposed``: matrices are stored as (inputs, outputs). Missing biases
    become zeros. Raises UserError if a weight is missing.
    """
    by_name = {strip_prefixes(name): tensor.float() for name, tensor in tensors.items()}
    if "wte.weight" not in by_name or "wpe.weight" not in by_name:
        raise UserError("these aren't GPT-2 weights: wte.weight or wpe.weight is missing")
    n_layer = len({name.split(".")[1] for name in by_name if name.startswith("h.")})
    width = by_name["wte.weight"].shape[1]
    weights: dict[str, Tensor] = {}
    for ours, theirs in layer_names(n_layer).items():
        if f"{theirs}.weight" not in by_name:
            raise UserError(f"the weights are incomplete: {theirs}.weight is missing")
        matrix = by_name[f"{theirs}.weight"]
        weights[f"{ours}.weight"] = matrix.T if transposed and is_matrix(f"{theirs}.weight") else matrix
        if ours not in ("embedding", "positions"):
            rows = len(weights[f"{ours}.weight"])
            weights[f"{ours}.bias"] = by_name.get(f"{theirs}.bias", torch.zeros(rows))
    weights["head.weight"] = by_name.get("lm_head.weight", weights["embedding.weight"])
    settings = {
        "style": "gpt2",
        "n_layer": n_layer,
        "n_head": n_head,
        "n_embd": width,
        "block_size": len(weights["positions.weight"]),
        "tie": torch.equal(weights["head.weight"], weights["embedding.weight"]),
    }
    return parse(TransformerConfig, settings, "model"), weights


def reorder_vocabulary(weights: dict[str, Tensor], rows: list[int]) -> dict[str, Tensor]:
    """Reorder the vocabulary: new row ``i`` of embedding and head is their old row ``rows[i]``."""
    index = torch.tensor(rows)
    return weights | {name: weights[name][index] for name in ("embedding.weight", "head.weight")}


def strip_prefixes(name: str) -> str:
    """Remove the prefixes of compiled and distributed models, in any order, and of GPT-2's body."""
    return re.sub(r"^(_orig_mod\.|module\.|transformer\.)+", "", name)
