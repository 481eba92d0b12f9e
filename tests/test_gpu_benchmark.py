"""The GPU benchmark runs on the CPU with tiny sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import prose, words

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.mark.slow
def test_dry_run(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(prose(), encoding="utf-8")
    (tmp_path / "names.txt").write_text(words(), encoding="utf-8")
    command = [
        sys.executable,
        SCRIPT,
        "--dry-run",
        "--out",
        "gpu.json",
        "--data",
        "text.txt",
        "--names",
        "names.txt",
    ]
    parts = ["--parts", "environment,training,nanogpt,sampling,scale", "--cases", "10 s"]
    done = subprocess.run(
        [*command, *parts], cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stdout, done.stdout
    results = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert results["environment"]["card"] == "CPU"
    assert results["training"]["transformer, 10 s"]["steps"] > 0
    assert results["training"]["transformer, 10 s"]["nanoGPT's estimate"] > 0
    assert results["nanogpt"] == {"skipped": "no --nanogpt"}
    assert results["sampling"]["10M"]["cpu, batch 2"] > 0
    assert results["scale"]["100M, eager"]["tokens/s"] > 0
    assert results["scale"]["torchrun --shard"]["steps"] == 30
