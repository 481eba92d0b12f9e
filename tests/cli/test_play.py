"""``makemore play`` before it serves; the rest is in tests/play."""

from __future__ import annotations

import importlib.util

import pytest


def test_a_missing_package_is_named(refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'makemore[play]'" in refused("play", "lines")


def test_a_missing_run_is_named(refused) -> None:
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    assert "no run at nowhere" in refused("play", "nowhere")
