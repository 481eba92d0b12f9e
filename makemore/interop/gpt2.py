"""Export a transformer of style gpt2 under Hugging Face's names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from makemore.models.transformer import Transformer

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
