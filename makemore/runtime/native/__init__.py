"""Compiled code for the CPU at hand, where there is a C compiler: made once, by it, and kept in the cache."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from makemore.runtime.cachedir import cache_folder

T = TypeVar("T")
TIMEOUT = 60
"""Seconds after which compiling is given up; it takes one."""


HEADERS = Path(__file__).parent


@cache
def library(source: Path, *flags: str) -> ctypes.CDLL | None:
    """What a C file compiles to. None: there is no compiler, or it can't, or the cache can't be written."""
    try:
        headers = sorted([*HEADERS.glob("*.h"), *source.parent.glob("*.h")])
        text = b"".join(path.read_bytes() for path in (source, *headers))
        key = hashlib.sha256(text + repr(flags).encode() + _processor()).hexdigest()[:32]
        built = cache_folder() / "native" / f"{source.stem}-{key}.so"
        if not built.exists():
            _compile(source, built, flags)
        return ctypes.CDLL(str(built))
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return None


def _compile(source: Path, built: Path, flags: tuple[str, ...]) -> None:
    """Whole or not at all, whoever else does so now."""
    built.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=built.parent) as folder:
        fresh = Path(folder) / built.name
        compiler = os.environ.get("CC", "cc")
        always = ["-O3", "-march=native", "-shared", "-fPIC", f"-I{HEADERS}"]
        subprocess.run(
            [compiler, *always, *flags, "-o", str(fresh), str(source), "-lm"],
            check=True,
            capture_output=True,
            timeout=TIMEOUT,
        )
        fresh.replace(built)


def _processor() -> bytes:
    """What distinguishes machines that share a cache but can't run each other's code."""
    said = [sys.platform, platform.machine(), platform.processor(), os.environ.get("CC", "cc")]
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        said += [next((line for line in lines if line.lower().startswith(("flags", "features"))), "")]
    return "\n".join(said).encode()


def spread(call: Callable[[int], T], parts: int) -> list[T]:
    """What a call gives for each part, each in a thread: C leaves Python's lock to the others."""
    others = [_pool().submit(call, part) for part in range(1, parts)]
    return [call(0), *(other.result() for other in others)]


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="native")


def structure(name: str, **fields: type) -> type[ctypes.Structure]:
    """A struct of C's, its fields in order."""
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


def address(array: np.ndarray | None) -> int | None:
    """Where C finds a contiguous array; None (NULL) where there is nothing in it."""
    if array is None or not array.size:
        return None
    assert array.flags.c_contiguous
    return array.ctypes.data
