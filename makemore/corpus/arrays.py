"""Named one-dimensional arrays that grow by appending, in memory or in memory-mapped files."""

from __future__ import annotations

import io
import mmap
from pathlib import Path
from typing import IO

import numpy as np

Shapes = dict[str, tuple[str, int]]
"""Array name to (dtype string, length)."""


class ArrayWriter:
    """Collects one-dimensional arrays by name, in memory or in files in ``folder``."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._files: dict[str, IO[bytes]] = {}
        self.shapes: Shapes = {}

    def append(self, name: str, values: np.ndarray) -> None:
        """Append to an array, casting to the dtype of its first values."""
        if name not in self._files:
            self._files[name] = (self.folder / f"{name}.bin").open("wb") if self.folder else io.BytesIO()
            self.shapes[name] = (values.dtype.str, 0)
        dtype, length = self.shapes[name]
        self._files[name].write(np.ascontiguousarray(values, np.dtype(dtype)).data)
        self.shapes[name] = (dtype, length + len(values))

    def finish(self) -> dict[str, np.ndarray]:
        """Return all arrays, memory-mapped if they are in files."""
        if self.folder is not None:
            self.close()
            return read_arrays(self.folder, self.shapes)
        data = {name: file.getbuffer() for name, file in self._files.items() if isinstance(file, io.BytesIO)}
        return {name: np.frombuffer(data[name], dtype) for name, (dtype, _) in self.shapes.items()}

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def read_arrays(folder: Path, shapes: Shapes) -> dict[str, np.ndarray]:
    """Memory-map the arrays of an ``ArrayWriter``. Raises OSError or ValueError if a file is incomplete."""
    arrays: dict[str, np.ndarray] = {}
    for name, (dtype, length) in shapes.items():
        path = folder / f"{name}.bin"
        # An empty file can't be memory-mapped.
        arrays[name] = np.memmap(path, dtype, "r", shape=(length,)) if length else np.zeros(0, dtype)
    return arrays


def release(array: np.ndarray) -> None:
    """Return a memory-mapped array's pages to the system, where supported."""
    mapped = getattr(array, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
