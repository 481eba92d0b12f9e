"""Arrays that grow piece by piece, in memory or in files that are mapped."""

from __future__ import annotations

import io
import mmap
from pathlib import Path
from typing import IO

import numpy as np

Shapes = dict[str, tuple[str, int]]
"""Type and length of each array, by name."""


class ArrayWriter:
    """Collects one-dimensional arrays by name, into ``folder`` where there is one."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._files: dict[str, IO[bytes]] = {}
        self.shapes: Shapes = {}

    def append(self, name: str, values: np.ndarray) -> None:
        """More of an array, of the type it began with."""
        if name not in self._files:
            self._files[name] = (self.folder / f"{name}.bin").open("wb") if self.folder else io.BytesIO()
            self.shapes[name] = (values.dtype.str, 0)
        kind, length = self.shapes[name]
        self._files[name].write(np.ascontiguousarray(values, np.dtype(kind)).data)
        self.shapes[name] = (kind, length + len(values))

    def finish(self) -> dict[str, np.ndarray]:
        """All arrays."""
        if self.folder is not None:
            self.close()
            return read_arrays(self.folder, self.shapes)
        held = {name: file.getbuffer() for name, file in self._files.items() if isinstance(file, io.BytesIO)}
        return {name: np.frombuffer(held[name], kind) for name, (kind, _) in self.shapes.items()}

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def read_arrays(folder: Path, shapes: Shapes) -> dict[str, np.ndarray]:
    """What an ``ArrayWriter`` wrote there, mapped. Raises OSError or ValueError where it isn't whole."""
    arrays: dict[str, np.ndarray] = {}
    for name, (kind, length) in shapes.items():
        path = folder / f"{name}.bin"
        # An empty file can't be mapped.
        arrays[name] = np.memmap(path, kind, "r", shape=(length,)) if length else np.zeros(0, kind)
    return arrays


def release(array: np.ndarray) -> None:
    """Give back the memory that a mapped array's pages took, where the system can."""
    mapped = getattr(array, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
