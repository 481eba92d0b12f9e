"""Location of the cache of encoded texts, fitted tokenizers and compiled code."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """``MAKEMORE_CACHE``, or makemore's directory in the user's caches; may not exist yet.

    Raises RuntimeError if the user has no home directory.
    """
    if os.environ.get("MAKEMORE_CACHE"):
        return Path(os.environ["MAKEMORE_CACHE"])
    import platformdirs

    Path.home()  # platformdirs would return a relative path
    return platformdirs.user_cache_path("makemore", appauthor=False)
