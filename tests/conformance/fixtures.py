"""Models with something to say: random weights or counts, for any registered rung."""

from __future__ import annotations

import math

import torch

from makemore.models import MODELS
from makemore.models.base import CountModel, LanguageModel
from makemore.types import Batch

VOCAB = 11


def documents(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """Random tokens (rows, length + 1) that begin with the boundary."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, VOCAB, (rows, length + 1), generator=generator)
    tokens[:, 0] = 0
    return tokens


def prepared(name: str) -> LanguageModel:
    """A rung in its default settings, in eval mode, whose logits are anything but uniform."""
    torch.manual_seed(0)
    kind = MODELS.get(name)
    model = kind(kind.Config(), VOCAB, 0)
    if isinstance(model, CountModel):
        tokens = documents(64, 40, seed=1)
        model.count_batch(Batch(tokens[:, :-1], tokens[:, 1:]))
        model.finish()
        return model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # As strong as what comes in at most, so that a recurrent network's rounding doesn't grow.
            parameter.add_(torch.randn_like(parameter) * min(0.15, 0.7 / math.sqrt(parameter.shape[-1])))
        model.train()
        for seed in range(3):  # running statistics
            model(documents(16, 12, seed)[:, :-1])
    return model.eval()


def room(model: LanguageModel, wanted: int) -> int:
    """A length the model can take in one call."""
    return wanted if model.supports_streaming or model.max_len is None else min(wanted, model.max_len)
