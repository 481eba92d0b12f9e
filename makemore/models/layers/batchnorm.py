"""Batch normalisation over the valid positions of a batch, with a closed-form gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BatchNorm(nn.Module):
    """Normalises each of C features over a batch (Ioffe & Szegedy 2015, "Batch Normalization").

    As in the paper and ``torch.nn.BatchNorm1d``, training normalises with the batch's biased variance,
    and ``running_var``, used at inference, averages the unbiased variance (Bessel's correction).
    ``momentum`` is the weight of a new batch in the running averages.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum = momentum
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Normalise ``x`` (..., C); in training, by statistics of the positions where ``valid`` (...)."""
        x = x.to(self.weight.dtype)  # computes in the parameters' dtype, also under autocast
        if not self.training:
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            return torch.addcmul(self.bias - self.running_mean * scale, x, scale)
        weights, count = _mean_weights(x, valid)
        positions = tuple(range(x.dim() - 1))
        mean = (x * weights).sum(positions)
        centred = x - mean
        var = (centred.square() * weights).sum(positions)
        self.update_running_stats(mean, var, count)
        return torch.addcmul(self.bias, centred, self.weight * (var + self.eps).rsqrt())

    @torch.no_grad()
    def update_running_stats(self, mean_C: Tensor, var_C: Tensor, count: Tensor) -> None:
        """Update the running averages with the mean and biased variance of ``count`` (a scalar) positions.

        A batch of fewer than two positions has no unbiased variance and is ignored.
        """
        momentum = self.momentum * (count > 1).to(mean_C)
        self.running_mean.lerp_(mean_C, momentum)
        self.running_var.lerp_(var_C * count / (count - 1).clamp(min=1), momentum)

    def manual_forward(self, x_NC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Training forward pass for a hand-written backward pass; overwrites ``x_NC``.

        Returns the output (N, C) and, for ``manual_backward``, the normalised input (N, C) and the
        inverse standard deviation (C,). Updates the running averages like ``forward``.
        """
        n = max(len(x_NC), 1)
        mean_C = x_NC.sum(0) / n
        x_NC -= mean_C
        out_NC = x_NC * x_NC
        var_C = out_NC.sum(0) / n
        self.update_running_stats(mean_C, var_C, x_NC.new_full((), len(x_NC)))
        inverse_std_C = (var_C + self.eps).rsqrt()
        normalised_NC = x_NC.mul_(inverse_std_C)
        torch.addcmul(self.bias, normalised_NC, self.weight, out=out_NC)
        return out_NC, normalised_NC, inverse_std_C

    def manual_backward(
        self, grad_NC: Tensor, normalised_NC: Tensor, inverse_std_C: Tensor, scratch_NC: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of input (N, C), gain (C,) and bias (C,), given the output's gradient.

        The input also affects the batch's mean and variance, which subtracts from each feature's
        gradient its mean and its projection on the normalised feature. ``grad_NC`` is overwritten with
        the input's gradient, ``scratch_NC`` is scratch memory.
        """
        n = max(len(grad_NC), 1)
        grad_bias_C = grad_NC.sum(0)
        grad_weight_C = torch.mul(grad_NC, normalised_NC, out=scratch_NC).sum(0)
        grad_NC.sub_(grad_bias_C / n).addcmul_(normalised_NC, grad_weight_C / -n)
        return grad_NC.mul_(self.weight * inverse_std_C), grad_weight_C, grad_bias_C


def _mean_weights(x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weights, broadcast to ``x``, that average over the valid positions; and their count."""
    if valid is None:
        count = x.new_full((), x.shape[:-1].numel())
        return count.reciprocal(), count
    count = valid.sum().to(x)
    return valid.to(x)[..., None] / count.clamp(min=1), count
