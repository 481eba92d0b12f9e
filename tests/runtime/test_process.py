"""Allocator and threading settings of the process, which never override the user's settings."""

from __future__ import annotations

import ctypes
import os

import pytest

from makemore.runtime import process


@pytest.fixture
def mallopt_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    calls: list[tuple[int, int]] = []

    class Library:
        def mallopt(self, param: int, value: int) -> int:
            calls.append((param, value))
            return 1

    monkeypatch.setattr(process.sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    for name in ("GOMP_SPINCOUNT", "THP_MEM_ALLOC_ENABLE", "MALLOC_ARENA_MAX"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return calls


def test_memory_is_retained_and_spin_waits_are_short(mallopt_calls):
    process.tune_process()
    assert dict(mallopt_calls)[-1] >= 1 << 30
    assert int(os.environ["GOMP_SPINCOUNT"]) < 300_000


def test_user_settings_are_not_overridden(mallopt_calls, monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    process.tune_process()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    assert not mallopt_calls


def test_other_c_libraries_are_ignored(mallopt_calls, monkeypatch):
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    process.tune_process()
    monkeypatch.setattr(process.sys, "platform", "darwin")
    process.tune_process()


def test_glibc_accepts_the_thresholds():
    try:
        library = ctypes.CDLL("libc.so.6")
    except OSError:
        pytest.skip("no glibc here")
    assert library.mallopt(process._M_MMAP_THRESHOLD, process._MAX_MMAP_THRESHOLD) == 1
