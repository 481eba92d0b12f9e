"""Build any registered model with random weights or counts, for tests that need nonuniform logits."""

from __future__ import annotations

import math

import torch

from makemore.models import MODELS
from makemore.models.base import CountModel, LanguageModel
from makemore.types import Batch

VOCAB = 11
BOUNDARY = 0


def documents(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """Random tokens (rows, length + 1); each row starts with the boundary."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, VOCAB, (rows, length + 1), generator=generator)
    tokens[:, 0] = 0
    return tokens


def nonzero_model(name: str) -> LanguageModel:
    """A model with default settings and nonuniform logits, in eval mode."""
    torch.manual_seed(0)
    model_class = MODELS.get(name)
    model = model_class(model_class.Config(), VOCAB, BOUNDARY)
    if isinstance(model, CountModel):
        tokens = documents(64, 40, seed=1)
        model.count_batch(Batch(tokens[:, :-1], tokens[:, 1:]))
        model.finish()
        return model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Gain at most about 0.7, so a recurrent network doesn't amplify rounding errors.
            parameter.add_(torch.randn_like(parameter) * min(0.15, 0.7 / math.sqrt(parameter.shape[-1])))
        model.train()
        for seed in range(3):  # updates running statistics
            model(documents(16, 12, seed)[:, :-1])
    return model.eval()


def limit_length(model: LanguageModel, length: int) -> int:
    """``length``, or the longest input the model accepts in one call if that is shorter."""
    return length if model.supports_streaming or model.max_len is None else min(length, model.max_len)
