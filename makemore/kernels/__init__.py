"""Forward and backward passes in C, one file per model family; importing this package registers them all."""

from makemore.kernels import transformer as transformer
from makemore.kernels.base import Kernel, find_kernel

__all__ = ["Kernel", "find_kernel"]
