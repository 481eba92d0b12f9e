"""C code compiled for this machine's processor: built on first use, kept in the cache."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from makemore.runtime.cachedir import cache_dir

T = TypeVar("T")
COMPILE_TIMEOUT = 60.0
"""Seconds; compiling takes one to three."""
HEADERS = Path(__file__).parent
"""Directory of the headers that all C files share: vectors, matrix products, layers, attention."""


class BuildError(Exception):
    """A C file can't be compiled or loaded; the message is one line."""


@dataclass(frozen=True, eq=False)
class CLibrary:
    """A C file, with the functions and structs that it exports."""

    source: Path
    functions: Mapping[str, tuple[Any, ...]]
    """The ctypes of each function's result (None for void) and arguments."""
    structs: Mapping[str, type[ctypes.Structure]] = field(default_factory=dict)
    """Python's layouts of the C structs. C exports the size of each as ``sizeof_<name>``."""

    def load(self, *flags: str) -> ctypes.CDLL | None:
        """Compile and load the code. Returns None if that failed (see ``failures``)."""
        try:
            code = _build(self.source, (*flags, *_tile_flags()))
            self._declare(code)
            return code
        except BuildError as error:
            failures[f"{self.source.parent.name}/{self.source.name}"] = str(error)
            return None

    def _declare(self, code: ctypes.CDLL) -> None:
        for name, struct in self.structs.items():
            size = ctypes.c_int64.in_dll(code, f"sizeof_{name}").value
            if size != ctypes.sizeof(struct):
                raise BuildError(f"struct {name} has {size} bytes in C, {ctypes.sizeof(struct)} in Python")
        for name, (result, *arguments) in self.functions.items():
            function = getattr(code, name)  # unlike code[name], the same object each time
            function.restype, function.argtypes = result, arguments


failures: dict[str, str] = {}
"""Reasons why C files could not be compiled or loaded in this process, by package and file."""


def failure_notes() -> list[str]:
    """One line for the user per entry of ``failures``."""
    return [f"{file} was not compiled, so this is slower: {reason}" for file, reason in failures.items()]


@cache
def _build(source: Path, flags: tuple[str, ...]) -> ctypes.CDLL:
    compiler = os.environ.get("CC", "cc")
    try:
        headers = sorted([*HEADERS.glob("*.h"), *source.parent.glob("*.h")])
        text = b"".join(path.read_bytes() for path in (source, *headers))
        key = hashlib.sha256(text + repr(flags).encode() + _processor()).hexdigest()[:32]
        prefix = cache_dir() / "native" / f"{source.stem}-{key}"
        return ctypes.CDLL(str(_find(prefix) or _compile(compiler, source, prefix, flags)))
    except FileNotFoundError as error:
        raise BuildError(f"no C compiler ({error.filename or compiler} not found)") from None
    except subprocess.CalledProcessError as error:
        first = next(iter(error.stderr.decode(errors="replace").splitlines()), "no message")
        raise BuildError(f"{compiler} failed: {first[:200]}") from None
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        raise BuildError(" ".join(str(error).split())[:200]) from None


def _find(prefix: Path) -> Path | None:
    """The compiled library whose path starts with ``prefix``. Deletes damaged files, which could crash."""
    for path in prefix.parent.glob(f"{prefix.name}-*.so"):
        if path == _library_path(prefix, path):
            return path
        path.unlink()
    return None


def _library_path(prefix: Path, library: Path) -> Path:
    """Path in the cache: ``prefix`` and a checksum of the library, so that damage is noticed."""
    return prefix.with_name(f"{prefix.name}-{hashlib.sha256(library.read_bytes()).hexdigest()[:16]}.so")


def _compile(compiler: str, source: Path, prefix: Path, flags: tuple[str, ...]) -> Path:
    """Compile into a temporary directory and rename: other processes may be building the same file."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=prefix.parent) as folder:
        output = Path(folder) / "library.so"
        options = ["-O3", "-march=native", "-shared", "-fPIC", f"-I{HEADERS}", *flags]
        subprocess.run(
            [compiler, *options, "-o", str(output), str(source), "-lm"],
            check=True,
            capture_output=True,
            timeout=COMPILE_TIMEOUT,
        )
        return output.replace(_library_path(prefix, output))


@cache
def _tile_flags() -> tuple[str, ...]:
    """The compiler's flag for tile registers (Intel AMX) if Linux lets this process use them."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return ()
    # arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) fails without tile registers.
    return () if ctypes.CDLL(None).syscall(158, 0x1023, 18) else ("-DAMX",)


def _processor() -> bytes:
    """Cache key of the CPU: machines that share a cache may be unable to run each other's code."""
    facts = [sys.platform, platform.machine(), platform.processor(), os.environ.get("CC", "cc")]
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        facts += [next((line for line in lines if line.lower().startswith(("flags", "features"))), "")]
    return "\n".join(facts).encode()


def parallel_map(function: Callable[[int, int], T], n: int, threads: int) -> list[T]:
    """Results of ``function(i, thread)`` for each i below ``n``; a thread that is free takes the next i.

    Calls into C release the GIL. Cores differ in speed, so there should be more calls than threads.
    """
    waiting = deque(range(n))
    results: dict[int, T] = {}

    def work(thread: int) -> None:
        while True:
            try:
                i = waiting.popleft()
            except IndexError:
                return
            results[i] = function(i, thread)

    others = [_pool().submit(work, thread) for thread in range(1, min(threads, n))]
    work(0)
    for other in others:
        other.result()
    return [results[i] for i in range(n)]


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="native")


def structure(name: str, **fields: type) -> type[ctypes.Structure]:
    """Define a C struct with these fields, in order."""
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


def address(array: np.ndarray | None) -> int | None:
    """Address of a contiguous array's data. Returns None (NULL) for None and for empty arrays."""
    if array is None or not array.size:
        return None
    assert array.flags.c_contiguous
    return array.ctypes.data
