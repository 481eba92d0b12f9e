"""Thread and memory settings of this process, applied before torch is imported."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import sys
from pathlib import Path

from makemore.errors import UserError

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_MAX_MMAP_THRESHOLD = 32 << 20
"""The largest threshold that glibc accepts."""


def total_memory() -> int:
    """The machine's memory in bytes."""
    import psutil

    return psutil.virtual_memory().total


def peak_memory() -> int | None:
    """Peak memory of this process in bytes, or None if unknown."""
    import psutil

    peak: int | None = getattr(psutil.Process().memory_info(), "peak_wset", None)
    if peak is not None:
        return peak
    # psutil has it on Windows only. Unlike getrusage, /proc excludes the parent process's peak.
    status = Path("/proc/self/status")
    if status.is_file():
        match = re.search(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="ascii", errors="replace"))
        return int(match[1]) * 1024 if match else None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def require_memory(n_bytes: int, purpose: str, advice: str) -> None:
    """Raise UserError if this machine has less memory than ``purpose`` takes."""
    memory = total_memory()
    if n_bytes > memory:
        raise UserError(
            f"{purpose} take about {n_bytes / 1e9:.1f} GB of memory, and this machine has "
            f"{memory / 1e9:.1f} GB; {advice}"
        )


def tune_process() -> None:
    """Shorten threads' busy-waiting, and keep freed memory instead of returning it at every step.

    A step of a small model is hundreds of short parallel loops. OpenMP threads should spin between them, but
    briefly, so as not to slow down other programs. glibc returns large freed blocks to the system; mapping
    and clearing their pages again takes a sixth of a step. The user's environment variables take precedence.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch: huge pages for large tensors
    if platform.machine() in ("x86_64", "AMD64"):
        # Sampling has its own threads. On other architectures torch may train with OpenBLAS.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if sys.platform == "linux" and platform.machine() == "x86_64":
        # Skip torch's test compilation for each instruction set, which takes 5 s. If the compiler supports
        # none of them, compilation fails and training continues without it.
        os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, _MAX_MMAP_THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_TOP_PAD, 64 << 20)


def release_memory() -> None:
    """Return freed memory to the system, where glibc keeps it; worth it after large arrays of many sizes."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # not glibc
            ctypes.CDLL("libc.so.6").malloc_trim(0)
