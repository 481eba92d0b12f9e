"""The last few tokens at every position, for models with a fixed window."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from makemore.types import State


def token_windows(
    tokens_BT: Tensor, state: State | None, size: int, boundary_id: int
) -> tuple[Tensor, State | None]:
    """Windows (B, T, size), oldest token first, and the next state: the last ``size - 1`` tokens.

    Positions before a document are boundary tokens, both before a row without a state and before a
    boundary token within a row.
    """
    if state is None:
        context = F.pad(tokens_BT, (size - 1, 0), value=boundary_id)
    else:
        context = torch.cat([state[0], tokens_BT], dim=1)
    windows_BTK = context.unfold(1, size, 1)
    is_boundary = (windows_BTK == boundary_id).long()
    n_later_boundaries = is_boundary.flip(-1).cumsum(-1).flip(-1) - is_boundary
    windows_BTK = windows_BTK.masked_fill(n_later_boundaries > 0, boundary_id)
    return windows_BTK, None if state is None else (context[:, context.shape[1] - size + 1 :],)
