"""makemore: train, sample and compare small language models, from n-grams to the transformer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from makemore.version import __version__

if TYPE_CHECKING:
    from makemore.api import Run, compare, evaluate, load, mix, train

__all__ = ["Run", "__version__", "compare", "evaluate", "load", "mix", "train"]


def __getattr__(name: str) -> Any:
    # Importing makemore, and the command line's help, must not import torch.
    if name in __all__:
        from makemore import api

        return getattr(api, name)
    raise AttributeError(f"module 'makemore' has no attribute {name!r}")
