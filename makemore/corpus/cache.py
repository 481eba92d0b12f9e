"""A folder of things that can be made again: each made once, whole or not at all."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from makemore.errors import UserError
from makemore.runtime.cachedir import cache_folder

META = "meta.json"
CHECKED = 1 << 28
"""Bytes of a file up to which its content is checked, not its size alone."""
BLOCK = 1 << 22


def key_of(*parts: Any) -> str:
    """A name for what follows from these JSON values alone."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class Cache:
    """``kind``: a folder within makemore's cache. Where that can't be written, a passing one does."""

    def __init__(self, kind: str) -> None:
        self.note = ""
        """One line worth telling the user."""
        try:
            self.folder = cache_folder() / kind
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except (OSError, RuntimeError) as error:
            self.folder = Path(tempfile.mkdtemp(prefix="makemore-"))
            atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
            reason = error.strerror if isinstance(error, OSError) else error
            self.note = f"no cache ({reason}): encoded anew each time; MAKEMORE_CACHE names another folder"

    def find(self, key: str) -> tuple[Path, dict[str, Any]] | None:
        """An entry's folder and what was said of it, unless it is missing or damaged."""
        folder = self.folder / key
        try:
            meta = json.loads((folder / META).read_text(encoding="utf-8"))
            for name, (size, crc) in meta["files"].items():
                if (folder / name).stat().st_size != size:
                    return None
                if size <= CHECKED and _crc(folder / name) != crc:
                    return None
            return folder, meta["said"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def make(self, key: str, build: Callable[[Path], dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
        """The entry of a key. ``build`` writes files into a folder and returns what to say of them.

        Of several processes that build at once the first one's is kept. Raises UserError where there
        is no room.
        """
        found = self.find(key)
        if found is not None:
            return found
        building = Path(tempfile.mkdtemp(prefix=".building-", dir=self.folder))
        try:
            _seal(building, build(building))
            self._place(building, key)
        except OSError as error:
            raise UserError(
                f"can't write to the cache in {self.folder}: {error.strerror}; free some space, or set "
                "MAKEMORE_CACHE to another folder"
            ) from None
        finally:
            shutil.rmtree(building, ignore_errors=True)
        found = self.find(key)
        if found is None:
            raise UserError(f"{self.folder / key} changed while it was written; try again")
        return found

    def _place(self, building: Path, key: str) -> None:
        for _ in range(2):
            with contextlib.suppress(OSError):
                os.rename(building, self.folder / key)
                return
            if self.find(key) is not None:
                return  # another process was first
            # What stands there is damaged.
            shutil.rmtree(self.folder / key, ignore_errors=True)
        os.rename(building, self.folder / key)


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            crc = zlib.crc32(block, crc)
    return crc


def _seal(folder: Path, said: dict[str, Any]) -> None:
    """Write down what a finished entry holds, once all of it is on disk."""
    files = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        files[path.name] = [path.stat().st_size, _crc(path)]
    with (folder / META).open("w", encoding="utf-8") as file:
        json.dump({"files": files, "said": said}, file)
        file.flush()
        os.fsync(file.fileno())
