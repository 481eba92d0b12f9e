"""Short causal convolutions: each channel mixes its own last few values."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ShortConv(nn.Module):
    """Adds to each channel a weighted sum of its values at this and the ``width - 1`` tokens before.

    Depthwise convolution as in So et al. 2021 (Primer) and Allen-Zhu 2025 (Canon layers). Weights
    begin at zero: the layer starts as the identity.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.zeros(width, channels))

    def forward(
        self, x_BTC: Tensor, index_BT: Tensor | None, tail_BKC: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The sum, (B, T, C), and the last ``width - 1`` inputs, which the next call's tail is.

        ``index_BT`` is each token's position in its document, beyond whose start nothing is seen; None
        where each row is one document.
        """
        length = x_BTC.shape[1]
        if tail_BKC is None:
            long = F.pad(x_BTC, (0, 0, self.width - 1, 0))
        else:
            long = torch.cat([tail_BKC.to(x_BTC.dtype), x_BTC], dim=1)
        weight = self.weight.to(x_BTC.dtype)
        out = x_BTC + x_BTC * weight[0]
        for back in range(1, self.width):
            begin = self.width - 1 - back
            before = long[:, begin : begin + length]
            if index_BT is not None:
                before = before * (index_BT >= back)[..., None]
            out = out + before * weight[back]
        return out, long[:, length:]
