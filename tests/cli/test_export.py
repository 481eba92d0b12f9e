"""``makemore export`` from the outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import call, train


@pytest.fixture
def gpt2(work: Path) -> Path:
    sizes = ("--set", "model.n_layer=1", "--set", "model.n_embd=16", "--set", "model.n_head=2")
    train("words.txt", "--steps", 2, "--set", "model.style=gpt2", *sizes, "--out", "gpt2")
    return work / "gpt2"


def test_it_lies_beside_the_run(work: Path, gpt2: Path) -> None:
    assert call("export", "lines", "--format", "arpa").out.startswith("lines.arpa ")
    assert (work / "lines.arpa").read_text(encoding="utf-8").startswith("\\data\\\n")
    done = json.loads(call("export", gpt2, "--format", "hf", "--json").out)
    assert Path(done["path"]) == work / "gpt2-hf"
    assert {path.name for path in (work / "gpt2-hf").iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert done["bytes"] == sum(path.stat().st_size for path in (work / "gpt2-hf").iterdir())


def test_a_high_order_says_what_kenlm_needs(work: Path) -> None:
    train("prose.txt", "--model", "count", "--set", "model.order=8", "--out", "eight")
    assert "KENLM_MAX_ORDER=8" in call("export", "eight", "--format", "arpa").err


def test_nothing_is_overwritten_unasked(refused, work: Path) -> None:
    assert call("export", "lines", "--format", "arpa", "--out", "x.arpa").status == 0
    assert "--overwrite" in refused("export", "lines", "--format", "arpa", "--out", "x.arpa")
    assert call("export", "lines", "--format", "arpa", "--out", "x.arpa", "--overwrite").status == 0
    (work / "folder").mkdir()
    assert "overwritten" in refused("export", "lines", "--format", "arpa", "--out", "folder", "--overwrite")


def test_a_run_is_not_overwritten(refused, gpt2: Path) -> None:
    said = refused("export", gpt2, "--format", "hf", "--out", gpt2, "--overwrite")
    assert "is not a Hugging Face model directory" in said
    assert "is not a Hugging" in refused("export", gpt2, "--format", "hf", "--out", "lines", "--overwrite")


def test_an_export_may_be_overwritten(work: Path, gpt2: Path) -> None:
    (work / "empty").mkdir()
    assert call("export", gpt2, "--format", "hf", "--out", "empty").status == 0
    assert "--overwrite" in call("export", gpt2, "--format", "hf", "--out", "empty").err
    assert call("export", gpt2, "--format", "hf", "--out", "empty", "--overwrite").status == 0


def test_from_within_the_run(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("lines")
    assert call("export", ".", "--format", "arpa").status == 0
    assert (work / "lines.arpa").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lines", "--format", "hf"], "is for the transformer"),
        (["lines", "--format", "onnx"], "--format arpa"),
        (["lines", "--format", "arpq"], "did you mean 'arpa'"),
        (["lines"], "--format"),
        (["nowhere", "--format", "hf"], "no run at nowhere"),
    ],
)
def test_refusals(refused, arguments: list[str], said: str) -> None:
    assert said in refused("export", *arguments)
