"""Short causal convolutions: each channel mixes its own last few values."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ShortConv(nn.Module):
    """Adds to each channel a weighted sum of its values at the current and the ``width - 1`` previous tokens.

    A depthwise convolution as in So et al. 2021 (Primer) and Allen-Zhu 2025 (Canon layers).
    Zero-initialised, so the layer starts as the identity.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.zeros(width, channels))

    def forward(
        self, x_BTC: Tensor, doc_position_BT: Tensor | None, tail_BKC: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the output (B, T, C) and the last ``width - 1`` inputs, the next call's ``tail_BKC``.

        ``doc_position_BT`` is each token's position in its document, which masks earlier documents; None if
        each row is one document.
        """
        length = x_BTC.shape[1]
        if tail_BKC is None:
            padded = F.pad(x_BTC, (0, 0, self.width - 1, 0))
        else:
            padded = torch.cat([tail_BKC.to(x_BTC.dtype), x_BTC], dim=1)
        weight = self.weight.to(x_BTC.dtype)
        out = x_BTC + x_BTC * weight[0]
        for offset in range(1, self.width):
            start = self.width - 1 - offset
            shifted = padded[:, start : start + length]
            if doc_position_BT is not None:
                shifted = shifted * (doc_position_BT >= offset)[..., None]
            out = out + shifted * weight[offset]
        return out, padded[:, length:]
