"""Allocator and threading settings of the process, which never override the user's settings."""

from __future__ import annotations

import ctypes
import os
import sys
from types import SimpleNamespace

import pytest

from makemore.runtime import process
from makemore.runtime.cachedir import cache_dir


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


def test_peak_memory_grows_with_what_the_process_holds():
    before = process.peak_memory()
    block = bytearray(64 << 20)
    for i in range(0, len(block), 4096):
        block[i] = 1
    after = process.peak_memory()
    assert before is not None
    assert after is not None
    assert after >= 64 << 20
    assert process.total_memory() > after


def test_windows_reports_the_peak_working_set(monkeypatch):
    import psutil

    info = SimpleNamespace(peak_wset=123 << 20)
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: info))
    assert process.peak_memory() == 123 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="the place on Linux")
def test_the_cache_has_one_place_on_linux(monkeypatch, tmp_path):
    monkeypatch.delenv("MAKEMORE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "makemore"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "makemore"
    monkeypatch.setenv("MAKEMORE_CACHE", str(tmp_path / "mine"))
    assert cache_dir() == tmp_path / "mine"
