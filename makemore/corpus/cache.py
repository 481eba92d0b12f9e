"""On-disk cache whose entries are built once and written atomically."""

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
from makemore.runtime.cachedir import cache_dir
from makemore.runtime.untrusted import read_foreign_json

META = "meta.json"
BLOCK = 1 << 22


def cache_key(*parts: Any) -> str:
    """Hash JSON values into a cache key."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class Cache:
    """Build-once cache in makemore's cache directory under ``kind``; temporary if that isn't writable."""

    def __init__(self, kind: str) -> None:
        self.note = ""
        """A one-line note for the user, or empty."""
        try:
            self.folder = cache_dir() / kind
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except (OSError, RuntimeError) as error:
            self.folder = Path(tempfile.mkdtemp(prefix="makemore-"))
            atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
            reason = error.strerror if isinstance(error, OSError) else error
            self.note = f"no cache ({reason}): nothing is reused; set MAKEMORE_CACHE to a writable directory"

    def find(self, key: str) -> tuple[Path, dict[str, Any]] | None:
        """An entry's directory and metadata, or None if it is missing or damaged; reads all of its bytes."""
        folder = self.folder / key
        try:
            meta = read_foreign_json(folder / META)
            files, metadata = meta["files"], meta["metadata"]
            is_intact = meta["digest"] == cache_key(files, metadata) and all(
                (folder / name).stat().st_size == size and _crc(folder / name) == crc
                for name, (size, crc) in files.items()
            )
            return (folder, metadata) if is_intact else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def get_or_build(self, key: str, build: Callable[[Path], dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
        """Return an entry; if missing, ``build`` writes its files to a directory and returns metadata.

        If several processes build it, the first one wins. Raises UserError if the disk is full.
        """
        entry = self.find(key)
        if entry is not None:
            return entry
        building = Path(tempfile.mkdtemp(prefix=".building-", dir=self.folder))
        try:
            _seal(building, build(building))
            self._publish(building, key)
        except OSError as error:
            raise UserError(
                f"can't write to the cache in {self.folder}: {error.strerror}; free some space, or set "
                "MAKEMORE_CACHE to another directory"
            ) from None
        finally:
            shutil.rmtree(building, ignore_errors=True)
        entry = self.find(key)
        if entry is None:
            raise UserError(f"{self.folder / key} changed while it was being written; try again")
        return entry

    def _publish(self, building: Path, key: str) -> None:
        for _ in range(2):
            with contextlib.suppress(OSError):
                os.rename(building, self.folder / key)
                return
            if self.find(key) is not None:
                return  # another process was faster
            # The existing entry is damaged.
            shutil.rmtree(self.folder / key, ignore_errors=True)
        os.rename(building, self.folder / key)


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            crc = zlib.crc32(block, crc)
    return crc


def _seal(folder: Path, metadata: dict[str, Any]) -> None:
    """Flush an entry's files to disk, then write their sizes, checksums and the metadata."""
    files = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        files[path.name] = [path.stat().st_size, _crc(path)]
    with (folder / META).open("w", encoding="utf-8") as file:
        json.dump({"files": files, "metadata": metadata, "digest": cache_key(files, metadata)}, file)
        file.flush()
        os.fsync(file.fileno())
