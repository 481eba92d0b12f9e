"""Parameter-free normalisation."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def rms_norm(x: Tensor) -> Tensor:
    """Divide by the root mean square over the last dimension (Zhang & Sennrich 2019)."""
    return F.rms_norm(x, (x.shape[-1],), eps=1e-6)


class RMSNorm(nn.Module):
    """``rms_norm`` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x)
