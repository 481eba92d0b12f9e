"""Native code: compiled once if a C compiler is available; otherwise the reason is recorded."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from makemore.runtime import native
from makemore.runtime.native import CLibrary, failures, structure

COMPILER = shutil.which(os.environ.get("CC", "cc"))
CODE = """
struct pair { int a; double b; };
const long long sizeof_pair = sizeof(struct pair);
double answer(const struct pair *p, int n) { %s }
"""
BODY = "return p->a + p->b * n;"
Pair = structure("Pair", a=ctypes.c_int, b=ctypes.c_double)


def library(folder: Path, body: str = BODY, pair: type[ctypes.Structure] = Pair) -> CLibrary:
    path = folder / "answer.c"
    path.write_text(CODE % body, encoding="utf-8")
    functions = {"answer": (ctypes.c_double, ctypes.POINTER(pair), ctypes.c_int)}
    return CLibrary(path, functions, {"pair": pair})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of compiled libraries."""
    monkeypatch.setenv("MAKEMORE_CACHE", str(tmp_path / "cache"))
    native._build.cache_clear()
    return tmp_path / "cache" / "native"


@pytest.fixture(autouse=True)
def no_failures() -> Iterator[None]:
    failures.clear()
    yield
    failures.clear()
    native._build.cache_clear()


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
class TestWithACompiler:
    def test_library_is_compiled_once(self, tmp_path, cache, monkeypatch):
        code = library(tmp_path).load()
        assert code is not None
        assert code.answer(ctypes.byref(Pair(2, 0.5)), 80) == 42
        (compiled,) = cache.iterdir()
        native._build.cache_clear()
        monkeypatch.setenv("PATH", "")  # the compiler can't be called again
        assert library(tmp_path).load() is not None
        assert list(cache.iterdir()) == [compiled]
        assert not failures

    @pytest.mark.parametrize("size", [100, -1])
    def test_damaged_library_is_compiled_again(self, tmp_path, cache, size):
        library(tmp_path).load()
        (compiled,) = cache.iterdir()
        data = compiled.read_bytes()
        compiled.unlink()  # it stays mapped
        compiled.write_bytes(data[:size])
        native._build.cache_clear()
        code = library(tmp_path).load()
        assert code is not None
        assert code.answer(ctypes.byref(Pair(2, 0.5)), 80) == 42
        (again,) = cache.iterdir()
        assert again.read_bytes()[:size] == data[:size]

    def test_changed_source_is_compiled_again(self, tmp_path, cache):
        library(tmp_path).load()
        native._build.cache_clear()
        code = library(tmp_path, "return 43;").load()
        assert code is not None
        assert code.answer(None, 0) == 43
        assert len(list(cache.iterdir())) == 2

    def test_a_compile_error_is_reported_in_one_line(self, tmp_path, cache, capfd):
        assert library(tmp_path, "return").load() is None
        assert "error" in failures[f"{tmp_path.name}/answer.c"]
        assert "\n" not in failures[f"{tmp_path.name}/answer.c"]
        assert list(cache.iterdir()) == []
        assert capfd.readouterr() == ("", "")

    def test_arguments_are_checked(self, tmp_path, cache):
        code = library(tmp_path).load()
        with pytest.raises(ctypes.ArgumentError):
            code.answer("text", 1)

    def test_a_struct_of_another_size_is_refused(self, tmp_path, cache):
        other = structure("Pair", a=ctypes.c_int, b=ctypes.c_double, c=ctypes.c_double)
        assert library(tmp_path, pair=other).load() is None
        assert failures[f"{tmp_path.name}/answer.c"] == "struct pair has 16 bytes in C, 24 in Python"


@pytest.mark.parametrize(("n", "threads"), [(0, 2), (1, 4), (20, 1), (20, 3)])
def test_parallel_calls_return_results_in_order(n, threads):
    called = native.parallel_map(lambda i, thread: (i, thread < threads), n, threads)
    assert called == [(i, True) for i in range(n)]


def test_an_error_in_a_thread_is_raised():
    with pytest.raises(ZeroDivisionError):
        native.parallel_map(lambda i, _: 1 // (i - 7), 20, 3)


def test_missing_compiler_is_recorded(tmp_path, no_compiler, capfd):
    assert library(tmp_path).load() is None
    assert failures[f"{tmp_path.name}/answer.c"].startswith("no C compiler")
    assert capfd.readouterr() == ("", "")


def test_unwritable_cache_is_recorded(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("MAKEMORE_CACHE", str(tmp_path / "file"))
    native._build.cache_clear()
    assert library(tmp_path).load() is None
    assert failures[f"{tmp_path.name}/answer.c"]
