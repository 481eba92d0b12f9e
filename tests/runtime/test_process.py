"""What a process asks of the system, and that it leaves to the user what the user has decided."""

from __future__ import annotations

import ctypes
import os

import pytest

from makemore.runtime import process


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    calls: list[tuple[int, int]] = []

    class Library:
        def mallopt(self, what: int, value: int) -> int:
            calls.append((what, value))
            return 1

    monkeypatch.setattr(process.sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    for name in ("GOMP_SPINCOUNT", "THP_MEM_ALLOC_ENABLE", "MALLOC_ARENA_MAX"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return calls


def test_memory_is_kept_and_waits_are_short(asked):
    process.tune_process()
    assert dict(asked)[-1] >= 1 << 30
    assert int(os.environ["GOMP_SPINCOUNT"]) < 300_000


def test_what_the_user_has_set_stands(asked, monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    process.tune_process()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    assert not asked


def test_another_c_library_is_no_error(asked, monkeypatch):
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    process.tune_process()
    monkeypatch.setattr(process.sys, "platform", "darwin")
    process.tune_process()


def test_glibc_takes_the_thresholds():
    try:
        library = ctypes.CDLL("libc.so.6")
    except OSError:
        pytest.skip("no glibc here")
    assert library.mallopt(process._M_MMAP_THRESHOLD, process._MAX_MMAP_THRESHOLD) == 1
