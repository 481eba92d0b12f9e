"""``makemore import`` from the outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from makemore.runs.directory import RunDir
from tests.cli.conftest import call


@pytest.fixture
def checkpoint(work: Path) -> Path:
    letters = len(set((work / "words.txt").read_text(encoding="utf-8")))  # the newline is the boundary
    torch.save({"logits": torch.zeros(letters, letters)}, work / "model.pt")
    return work / "model.pt"


def test_it_makes_a_run(checkpoint: Path) -> None:
    done = json.loads(call("import", checkpoint, "words.txt", "--out", "mine", "--json").out)
    assert (done["run"], done["model"]) == ("mine", "bigram")
    score = json.loads(call("eval", "mine", "--json").out)
    letters = len(set(Path("words.txt").read_text(encoding="utf-8")))
    assert score["perplexity"] == pytest.approx(letters)
    assert call("sample", "mine", "-n", 2).status == 0
    assert call("train", "words.txt", "--init-from", "mine", "--steps", 2).status == 0


def test_its_files_are_those_of_a_run(checkpoint: Path) -> None:
    assert call("import", checkpoint, "words.txt", "--out", "mine").status == 0
    checked = call("check", "mine")
    assert checked.status == 0, checked.out + checked.err
    Path("words.txt").rename("gone.txt")
    assert call("sample", "mine", "-n", 2, "--novel-only").status == 0  # it keeps the lines' hashes
    Path("gone.txt").rename("words.txt")
    with RunDir(Path("mine")).locked():
        assert (
            "another process" in call("import", checkpoint, "words.txt", "--out", "mine", "--overwrite").err
        )


def test_refusals(refused, checkpoint: Path) -> None:
    assert "pass the text" in refused("import", checkpoint, "prose.txt")
    assert "--overwrite" in refused("import", checkpoint, "words.txt", "--out", "lines")
    assert "no such file" in refused("import", "nothing.pt", "words.txt")
    assert "applies only to" in refused("import", checkpoint, "words.txt", "--n-head", 2)
    assert "run code" in refused("import", "words.txt", "words.txt")
