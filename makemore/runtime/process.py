"""What this process asks of the system's threads and memory, before torch is imported."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_MOST_FOR_MMAP = 32 << 20
"""The largest threshold that glibc takes."""


def memory() -> int | None:
    """Bytes of this machine's memory; None where the system doesn't say, such as on Windows."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def tune_process() -> None:
    """Short waits between threads, and memory that is kept rather than given back at every step.

    A step of a small model is hundreds of short parallel loops. OpenMP's threads should wait for the next
    one awake, but not for long, or a second program on the machine slows both. glibc returns large blocks
    to the system when they are freed, and each page of the next one has to be mapped and cleared again:
    a sixth of a step. What the user has set in the environment stands.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch: huge pages for large tensors
    if platform.machine() in ("x86_64", "AMD64"):
        # Sampling has threads of its own. Elsewhere torch may use this library too, for training.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if sys.platform == "linux" and platform.machine() == "x86_64":
        # torch would compile and load a library for each of the processor's instruction sets first, which
        # takes 5 s; a compiler that knows none of them fails, and training goes on without.
        os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, _MOST_FOR_MMAP)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_TOP_PAD, 64 << 20)
