"""Check a model's hand-written gradients."""

from __future__ import annotations

import torch

from makemore.errors import UserError
from makemore.models import MODELS
from makemore.models.base import ManualModel
from makemore.settings import parse_settings, replace_settings
from makemore.training.gradcheck import GradRow, gradcheck
from makemore.types import IGNORE_INDEX

VOCAB, ROWS, LENGTH = 27, 8, 6


def check_gradients(name: str, settings: tuple[str, ...] = (), seed: int = 0) -> list[GradRow]:
    """Check the gradients of a fresh model on a random batch with padding.

    Raises UserError if the model has no hand-written backward pass.
    """
    kind = MODELS.get(name)
    if not issubclass(kind, ManualModel):
        manual = [n for n in MODELS if issubclass(MODELS.get(n), ManualModel)]
        raise UserError(f"{name} has no hand-written backward pass; choose from {', '.join(manual)}")
    config = replace_settings(kind.Config(), parse_settings(list(settings), ("model",))["model"], "model")
    torch.manual_seed(seed)
    model = kind(config, VOCAB, 0)
    tokens = torch.randint(1, VOCAB, (ROWS, LENGTH + 1))
    tokens[:, 0] = 0
    targets = tokens[:, 1:].clone()
    targets[: ROWS // 2, LENGTH // 2 :] = IGNORE_INDEX
    return gradcheck(model, tokens[:, :-1], targets, seed=seed)
