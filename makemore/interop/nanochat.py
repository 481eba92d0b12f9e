"""Export a transformer of style modern, without convolutions, as Hugging Face's NanoChat."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from makemore.models.transformer import Transformer


@torch.no_grad()
def to_nanochat(model: Transformer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and weights of a NanoChatForCausalLM with the same logits.

    NanoChat normalises queries and keys after the rotary embedding rather than before, which is equivalent.
    """
    w, c = model.state_dict(), model.config
    tensors = {"model.embed_tokens.weight": w["embedding.weight"], "lm_head.weight": w["head.weight"]}
    for i in range(c.n_layer):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        q, k, v = w[f"{ours}.attention.qkv.weight"].chunk(3)
        tensors |= {
            f"{theirs}.self_attn.q_proj.weight": _reverse_rotation(q, c.n_head),
            f"{theirs}.self_attn.k_proj.weight": _reverse_rotation(k, c.n_head),
            f"{theirs}.self_attn.v_proj.weight": v,
            f"{theirs}.self_attn.o_proj.weight": w[f"{ours}.attention.out.weight"],
            f"{theirs}.mlp.fc1.weight": w[f"{ours}.feed_forward.up.weight"],
            f"{theirs}.mlp.fc2.weight": w[f"{ours}.feed_forward.down.weight"],
        }
    settings = {
        "architectures": ["NanoChatForCausalLM"],
        "model_type": "nanochat",
        "vocab_size": model.vocab_size,
        "max_position_embeddings": c.block_size,
        "hidden_size": c.n_embd,
        "intermediate_size": 4 * c.n_embd,
        "num_hidden_layers": c.n_layer,
        "num_attention_heads": c.n_head,
        "num_key_value_heads": c.n_head,
        "hidden_act": "relu2",
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "final_logit_softcapping": None,
        "attention_dropout": c.dropout,
        "tie_word_embeddings": False,
        "pad_token_id": None,
    }
    return settings, tensors


def _reverse_rotation(weight_CC: Tensor, n_head: int) -> Tensor:
    """NanoChat rotates pairs in the opposite direction; swapping the two halves of each head undoes it."""
    a, b = weight_CC.view(n_head, 2, -1, weight_CC.shape[1]).unbind(1)
    return torch.stack([b, a], dim=1).reshape(weight_CC.shape)
