"""The transformer's feed-forward layer."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class FeedForward(nn.Module):
    """Two linear layers with a hidden width of 4 times the input's: squared ReLU or GELU."""

    def __init__(self, width: int, modern: bool) -> None:
        """``modern``: squared ReLU (So et al. 2021) without biases."""
        super().__init__()
        self.modern = modern
        self.up = nn.Linear(width, 4 * width, bias=not modern)
        self.down = nn.Linear(4 * width, width, bias=not modern)

    def forward(self, x_BTC: Tensor) -> Tensor:
        h = self.up(x_BTC)
        return self.down(F.relu(h) * F.relu(h) if self.modern else F.gelu(h, approximate="tanh"))
