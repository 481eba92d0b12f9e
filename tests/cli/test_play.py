"""Errors of ``makemore play`` before the server starts; the server is tested in tests/play."""

from __future__ import annotations

import importlib.util

import pytest


def test_missing_package_is_reported(refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'makemore[play]'" in refused("play", "lines")


def test_missing_run_is_reported(refused) -> None:
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    assert "no run at nowhere" in refused("play", "nowhere")
