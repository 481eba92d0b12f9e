"""Models with noise added to every parameter, so that none keeps an initial value of 0 or 1."""

from __future__ import annotations

from typing import Any

import torch

from makemore.models.transformer import Transformer, TransformerConfig

SMALL = {"block_size": 48, "n_layer": 2, "n_head": 2, "n_embd": 32}


@torch.no_grad()
def nonzero_transformer(vocab_size: int, **settings: Any) -> Transformer:
    """Return a small noisy transformer in eval mode."""
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(**{**SMALL, **settings}), vocab_size, 0)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()
