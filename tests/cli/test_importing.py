"""``makemore import`` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from makemore.runs.directory import RunDir
from tests.cli.conftest import call


@pytest.fixture
def checkpoint(work: Path) -> Path:
    n_chars = len(set((work / "words.txt").read_text(encoding="utf-8")))  # the newline is the boundary token
    torch.save({"logits": torch.zeros(n_chars, n_chars)}, work / "model.pt")
    return work / "model.pt"


def test_imported_run_can_be_scored_sampled_and_trained(checkpoint: Path) -> None:
    report = json.loads(call("import", checkpoint, "words.txt", "--out", "mine", "--json").out)
    assert (report["run"], report["model"]) == ("mine", "bigram")
    score = json.loads(call("eval", "mine", "--json").out)
    n_chars = len(set(Path("words.txt").read_text(encoding="utf-8")))
    assert score["perplexity"] == pytest.approx(n_chars)
    assert call("sample", "mine", "-n", 2).status == 0
    assert call("train", "words.txt", "--init-from", "mine", "--steps", 2).status == 0


def test_imported_run_is_complete_and_locked_like_any_run(checkpoint: Path) -> None:
    assert call("import", checkpoint, "words.txt", "--out", "mine").status == 0
    checked = call("check", "mine")
    assert checked.status == 0, checked.out + checked.err
    Path("words.txt").rename("gone.txt")
    assert call("sample", "mine", "-n", 2, "--novel-only").status == 0  # needs only the stored line hashes
    Path("gone.txt").rename("words.txt")
    with RunDir(Path("mine")).locked():
        assert (
            "another process" in call("import", checkpoint, "words.txt", "--out", "mine", "--overwrite").err
        )


def test_invalid_imports_are_refused(refused, checkpoint: Path) -> None:
    assert "pass the checkpoint's training text" in refused("import", checkpoint, "prose.txt")
    assert "--overwrite" in refused("import", checkpoint, "words.txt", "--out", "lines")
    assert "no such file" in refused("import", "nothing.pt", "words.txt")
    assert "applies only to" in refused("import", checkpoint, "words.txt", "--n-head", 2)
    assert "run code" in refused("import", "words.txt", "words.txt")
