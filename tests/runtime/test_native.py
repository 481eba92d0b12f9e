"""Compiled code: made where it can be, else done without."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from makemore.runtime.native import library

COMPILER = shutil.which(os.environ.get("CC", "cc"))


def source(folder: Path, body: str = "return 42;") -> Path:
    path = folder / "answer.c"
    path.write_text(f"int answer(void) {{ {body} }}\n", encoding="utf-8")
    return path


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where what was compiled is kept."""
    monkeypatch.setenv("MAKEMORE_CACHE", str(tmp_path / "cache"))
    library.cache_clear()
    return tmp_path / "cache" / "native"


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
class TestWithACompiler:
    def test_is_compiled_once_and_kept_alone(self, tmp_path, kept, monkeypatch):
        code = library(source(tmp_path))
        assert code is not None
        assert code.answer() == 42
        (built,) = kept.iterdir()
        library.cache_clear()
        monkeypatch.setenv("PATH", "")  # no compiler is called again
        assert library(source(tmp_path)) is not None
        assert list(kept.iterdir()) == [built]

    def test_another_text_is_another_library(self, tmp_path, kept):
        library(source(tmp_path))
        library.cache_clear()
        code = library(source(tmp_path, "return 43;"))
        assert code is not None
        assert code.answer() == 43
        assert len(list(kept.iterdir())) == 2

    def test_what_does_not_compile_is_none(self, tmp_path, kept, capfd):
        assert library(source(tmp_path, "return")) is None
        assert list(kept.iterdir()) == []
        assert capfd.readouterr() == ("", "")


def test_without_a_compiler_there_is_none(tmp_path, kept, monkeypatch, capfd):
    monkeypatch.setenv("CC", str(tmp_path / "missing"))
    assert library(source(tmp_path)) is None
    assert capfd.readouterr() == ("", "")


def test_without_a_place_to_keep_it_there_is_none(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("MAKEMORE_CACHE", str(tmp_path / "file"))
    library.cache_clear()
    assert library(source(tmp_path)) is None
