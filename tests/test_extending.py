"""A model, tokenizer, optimizer, export format or picture: one file and one registry line each."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from makemore.cli import run
from makemore.inspection.pictures import PICTURES
from makemore.interop import FORMATS
from makemore.models import MODELS
from makemore.registry import Registry
from makemore.tokenizers import TOKENIZERS
from makemore.training.optimizers import OPTIMIZERS

TOY = '''
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from makemore.settings import ModelConfig, Size
from makemore.models.base import LanguageModel


class ToyConfig(ModelConfig):
    """Settings of ``toy``."""

    name: Literal["toy"] = "toy"
    width: Size = Field(16, description="width of the toy")


class Toy(LanguageModel):
    """Adds the embeddings of the last two tokens."""

    Config = ToyConfig
    summary = "a toy of two tokens"
    max_len = 2

    def __init__(self, config, vocab_size, boundary_id):
        super().__init__(config, vocab_size, boundary_id)
        self.last = nn.Embedding(vocab_size, config.width)
        self.previous = nn.Embedding(vocab_size, config.width)
        self.head = nn.Linear(config.width, vocab_size)

    def init_state(self, batch_size, capacity):
        return (torch.full((batch_size, 1), self.boundary_id, device=self.device),)

    def forward(self, tokens_BT, state=None, valid_BT=None):
        before = self.init_state(len(tokens_BT), 1) if state is None else state
        context = torch.cat([before[0], tokens_BT], dim=1)
        logits = self.head(self.last(tokens_BT) + self.previous(context[:, :-1]))
        return logits, None if state is None else (context[:, -1:],)
'''


@pytest.fixture(autouse=True)
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Register the model ``toy`` for one test."""
    (tmp_path / "toy_module.py").write_text(TOY, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(MODELS, "_entries", dict(MODELS._entries))
    MODELS.register("toy", "toy_module:Toy")
    yield
    sys.modules.pop("toy_module", None)


@pytest.fixture
def words(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    lines = [a + b + a + c for a in "bdkl" for b in "aeiou" for c in "aeiou" if b != c]
    path.write_text("\n".join(lines * 3) + "\n", encoding="utf-8")
    return path


def train(words: Path, out: Path, *more: str) -> int:
    budget = ["--steps", "60", "--device", "cpu", "--json"]
    return run(["train", str(words), "--model", "toy", "--mode", "lines", "--out", str(out), *budget, *more])


def test_external_model_is_trained_scored_and_sampled(
    words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert train(words, out, "--set", "model.width=8", "--set", "train.lr=0.05") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["model"] == "toy"
    assert result["steps"] == 60
    assert result["parameters"] == 10 * 8 * 2 + 8 * 10 + 10  # boundary, four consonants, five vowels
    assert result["val"]["nll"] < 1.6  # guessing: ln 10 = 2.3
    assert json.loads((out / "config.json").read_text())["model"] == {
        "name": "toy",
        "width": 8,
    }
    assert run(["eval", str(out), "--json"]) == 0
    score = json.loads(capsys.readouterr().out)
    assert score["nll"] == pytest.approx(result["val"]["nll"])
    assert score["split"] == "val"
    assert run(["sample", str(out), "-n", "5", "--prompt", "ba", "--seed", "1"]) == 0
    samples = capsys.readouterr().out.splitlines()
    assert len(samples) == 5
    assert all(text.startswith("ba") for text in samples)
    assert all(set(text) <= set("bdklaeiou") for text in samples)


def test_external_model_is_listed_with_its_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models"]) == 0
    output = capsys.readouterr()
    assert "toy" in output.out
    assert "a toy of two tokens" in output.out


@pytest.mark.parametrize(
    ("setting", "message"),
    [("model.widht=8", "model.width"), ("model.width=big", "whole number"), ("model.width=0", "1 or more")],
)
def test_external_model_settings_are_validated(
    setting: str, message: str, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(words, tmp_path / "run", "--set", setting) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.count("\n") == 1
    assert not output.out
    assert not (tmp_path / "run").exists()


def test_unregistered_model_is_unknown(
    capsys: pytest.CaptureFixture[str], words: Path, tmp_path: Path
) -> None:
    del MODELS._entries["toy"]
    assert train(words, tmp_path / "run") == 2
    assert "unknown model 'toy'" in capsys.readouterr().err


UPPER_CASE = """
import numpy as np

from makemore.tokenizers.base import Tokenizer


class UpperCase(Tokenizer):
    name = "upper"
    vocab_size = 257

    @classmethod
    def fit(cls, pieces, option):
        return cls()

    def encode(self, text):
        return np.frombuffer(text.upper().encode(), np.uint8) + np.uint16(1)

    def decode_bytes(self, ids):
        ids = np.asarray(ids, np.int64)
        return np.where(ids == 0, 10, ids - 1).astype(np.uint8).tobytes()

    def token_bytes(self):
        return np.ones(257, np.int64)

    def to_dict(self):
        return {"name": self.name}

    @classmethod
    def from_dict(cls, data):
        return cls()
"""
SIGN_DESCENT = """
import torch


class SignDescent(torch.optim.Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad.sign(), alpha=group["lr"])


def build(model, config, dtype):
    return [SignDescent(model.parameters(), config.lr)]
"""
JSON_FORMAT = """
import json

from makemore.interop.base import ExportFormat


def files(run):
    weights = {name: tensor.tolist() for name, tensor in run.model.state_dict().items()}
    return {"": json.dumps({"tokenizer": run.tokenizer.to_dict(), "weights": weights}).encode()}


FORMAT = ExportFormat(suffix=".json", files=files)
"""
HISTOGRAM = """
from makemore.inspection.figures import new_figure
from makemore.inspection.subject import Finding, Picture


def plot(subject):
    figure = new_figure(6, 4)
    figure.subplots().hist(next(subject.model.parameters()).detach().flatten().numpy())
    finding = Finding("note", "a histogram was added")
    return Picture(name="histogram", title="Weights", caption="", figure=figure, findings=[finding])
"""


@pytest.mark.parametrize(
    ("registry", "name", "attribute", "source"),
    [
        (TOKENIZERS, "upper", "UpperCase", UPPER_CASE),
        (OPTIMIZERS, "sign", "build", SIGN_DESCENT),
        (FORMATS, "json", "FORMAT", JSON_FORMAT),
        (PICTURES, "histogram", "plot", HISTOGRAM),
    ],
    ids=["tokenizer", "optimizer", "export format", "picture"],
)
def test_additions_work_from_the_command_line(
    registry: Registry[object],
    name: str,
    attribute: str,
    source: str,
    words: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / f"added_{name}.py").write_text(source, encoding="utf-8")
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    registry.register(name, f"added_{name}:{attribute}")
    out = tmp_path / "run"
    flags = {
        "upper": ["--tokenizer", "upper", "--set", "train.lr=0.1"],
        "sign": ["--set", "train.optimizer=sign", "--set", "train.lr=0.02"],
    }
    assert train(words, out, *flags.get(name, [])) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["val"]["nll"] < 2.2  # guessing: ln 10 = 2.3
    assert run(["sample", str(out), "-n", "2", "--seed", "1"]) == 0
    samples = capsys.readouterr().out
    assert (samples == samples.upper()) == (name == "upper")
    if name == "sign":
        assert result["used"]["optimizer"] == "sign"
    if name == "json":
        assert run(["export", str(out), "--format", "json"]) == 0
        exported = json.loads(out.with_name("run.json").read_text(encoding="utf-8"))
        assert set(exported) == {"tokenizer", "weights"}
    if name == "histogram":
        assert run(["inspect", str(out), "--json", "--out", str(tmp_path / "page")]) == 0
        findings = json.loads(capsys.readouterr().out)["findings"]
        assert "a histogram was added" in [finding["text"] for finding in findings]
        assert (tmp_path / "page" / "histogram.png").stat().st_size > 1000


def test_an_unknown_optimizer_is_refused(
    words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(words, tmp_path / "run", "--set", "train.optimizer=adma") == 2
    assert "unknown optimizer 'adma'; did you mean 'adamw'?" in capsys.readouterr().err


def test_added_tokenizers_work_in_a_comparison(
    words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each run is trained in a new process, which must know them, too."""
    (tmp_path / "added_upper.py").write_text(UPPER_CASE, encoding="utf-8")
    monkeypatch.setattr(TOKENIZERS, "_entries", dict(TOKENIZERS._entries))
    TOKENIZERS.register("upper", "added_upper:UpperCase")
    arguments = ["--models", "toy", "--tokenizers", "upper", "--steps", "3", "--out", str(tmp_path / "out")]
    assert run(["compare", str(words), *arguments, "--json"]) == 0, capsys.readouterr().err
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["model"], row["tokenizer"]) == ("toy", "upper")
