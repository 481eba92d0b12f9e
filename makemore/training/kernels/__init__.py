"""Gradients in C, one file per model family; importing this package registers them all."""

from makemore.training.kernels import transformer as transformer
from makemore.training.kernels.base import GradientKernel, gradient_kernel

__all__ = ["GradientKernel", "gradient_kernel"]
