"""Fixtures and settings shared by all tests."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from makemore.runtime import native
from makemore.runtime.process import tune_process

# As the program does; torch's compiler reads some of these environment variables when it is imported.
tune_process()
# Tests run in parallel, one core each, and so do the processes they start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
# A slow example is not a failure.
hypothesis.settings.register_profile("makemore", deadline=None)
hypothesis.settings.load_profile("makemore")
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")


def _data(name: str) -> Path:
    path = Path(os.environ.get("MAKEMORE_DATA", "data")) / name
    if not path.is_file():
        pytest.skip(f"{name} not found; set MAKEMORE_DATA")
    return path


@pytest.fixture
def names_file() -> Path:
    return _data("names.txt")


@pytest.fixture
def shakespeare_file() -> Path:
    return _data("shakespeare.txt")


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests' encoded texts out of the user's cache."""
    monkeypatch.setenv("MAKEMORE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def forked_runs() -> Iterator[None]:
    """Fork the processes of a comparison, which then needn't import torch; for tests of what they do then."""
    if sys.platform != "linux":
        yield
        return
    context = multiprocessing.get_context("fork")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", lambda method: context)
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, if installed."""
    playwright = pytest.importorskip("playwright.sync_api")
    executable = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if executable is None:
        pytest.skip("Chromium isn't installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide the C compiler and use an empty cache."""
    monkeypatch.setenv("CC", str(tmp_path / "missing-cc"))
    monkeypatch.setenv("MAKEMORE_CACHE", str(tmp_path / "empty-cache"))
    native._build.cache_clear()
    yield
    native._build.cache_clear()
    native.failures.clear()
