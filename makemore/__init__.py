"""makemore: a ladder of character-level language models under one contract."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from makemore.runs.run import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    # Lazy: `import makemore` and the command line's help don't wait for torch.
    if name == "load":
        from makemore.runs.run import load

        return load
    raise AttributeError(f"module 'makemore' has no attribute {name!r}")
