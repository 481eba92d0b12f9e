"""``makemore export`` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import call, train


@pytest.fixture
def gpt2(work: Path) -> Path:
    sizes = ("--set", "model.n_layer=1", "--set", "model.n_embd=16", "--set", "model.n_head=2")
    train(
        "words.txt", "-m", "transformer", "--steps", 2, "--set", "model.style=gpt2", *sizes, "--out", "gpt2"
    )
    return work / "gpt2"


def test_export_is_written_next_to_the_run(work: Path, gpt2: Path) -> None:
    out = call("export", "lines", "--format", "arpa").out
    size = (work / "lines.arpa").stat().st_size
    assert out == f"lines.arpa  ({size:,} bytes)\nlines.arpa.md  (model card)\n"
    report = json.loads(call("export", "lines", "--format", "arpa", "--overwrite", "--json").out)
    assert (report["path"], report["card"], report["bytes"]) == ("lines.arpa", "lines.arpa.md", size)
    assert (work / "lines.arpa").read_text(encoding="utf-8").startswith("\\data\\\n")
    report = json.loads(call("export", gpt2, "--format", "hf", "--json").out)
    assert Path(report["path"]) == work / "gpt2-hf"
    assert {path.name for path in (work / "gpt2-hf").iterdir()} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert report["card"] == f"{report['path']}/README.md"
    assert report["bytes"] == sum(path.stat().st_size for path in (work / "gpt2-hf").iterdir())


def test_high_order_names_the_kenlm_build_option(work: Path) -> None:
    train("prose.txt", "--model", "count", "--set", "model.order=8", "--out", "eight")
    assert "KENLM_MAX_ORDER=8" in call("export", "eight", "--format", "arpa").err


def test_existing_file_needs_overwrite(refused, work: Path) -> None:
    assert call("export", "lines", "--format", "arpa", "--out", "x.arpa").status == 0
    assert "--overwrite" in refused("export", "lines", "--format", "arpa", "--out", "x.arpa")
    assert call("export", "lines", "--format", "arpa", "--out", "x.arpa", "--overwrite").status == 0
    (work / "folder").mkdir()
    assert "overwritten" in refused("export", "lines", "--format", "arpa", "--out", "folder", "--overwrite")


def test_run_directory_is_never_overwritten(refused, gpt2: Path) -> None:
    message = refused("export", gpt2, "--format", "hf", "--out", gpt2, "--overwrite")
    assert "is not an export of this format" in message
    assert "is not an export" in refused("export", gpt2, "--format", "hf", "--out", "lines", "--overwrite")


def test_earlier_export_can_be_overwritten(work: Path, gpt2: Path) -> None:
    (work / "empty").mkdir()
    assert call("export", gpt2, "--format", "hf", "--out", "empty").status == 0
    assert "--overwrite" in call("export", gpt2, "--format", "hf", "--out", "empty").err
    assert call("export", gpt2, "--format", "hf", "--out", "empty", "--overwrite").status == 0


def test_export_from_inside_the_run_directory(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("lines")
    assert call("export", ".", "--format", "arpa").status == 0
    assert (work / "lines.arpa").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lines", "--format", "hf"], "is for single neural models"),
        (["lines", "--format", "onnx"], "--format arpa"),
        (["lines", "--format", "arpq"], "did you mean 'arpa'"),
        (["lines"], "--format"),
        (["nowhere", "--format", "hf"], "no run at nowhere"),
    ],
)
def test_invalid_arguments_are_refused(refused, arguments: list[str], message: str) -> None:
    assert message in refused("export", *arguments)
