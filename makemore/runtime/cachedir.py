"""Location of the cache of encoded texts, fitted tokenizers and compiled code."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def cache_dir() -> Path:
    """``MAKEMORE_CACHE``, or makemore's directory in the user's caches; may not exist yet.

    Raises RuntimeError if the user has no home directory.
    """
    if os.environ.get("MAKEMORE_CACHE"):
        return Path(os.environ["MAKEMORE_CACHE"])
    if platform.system() == "Windows" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"]) / "makemore"
    if platform.system() == "Darwin":
        return Path.home() / "Library" / "Caches" / "makemore"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "makemore"
