"""k steps, stop, resume, k steps are 2k steps bit for bit; and what changes on the way is told."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._inductor.utils import clear_caches

from makemore.errors import UserError
from makemore.models import MODELS
from makemore.models.base import CountModel, ManualModel
from makemore.runs.directory import RunDir
from makemore.training.observers import NullObserver
from makemore.training.request import TrainRequest
from makemore.training.train import TrainingInterrupted, TrainResult, train
from tests.cli.conftest import prose, words

GRADIENT = [
    name for name in MODELS if MODELS.get(name).is_trainable and not issubclass(MODELS.get(name), CountModel)
]
SMALL = {"n_layer": 1, "n_embd": 16, "n_hidden": 16, "n_head": 2, "block_size": 8, "dropout": 0.2}
STEPS = 10
TRAIN = {
    "steps": STEPS,
    "batch_tokens": 64,
    "block_size": 16,
    "grad_accum_steps": 2,
    "ema": 0.9,
    "eval_interval": 3,
    "eval_tokens": 64,
    "patience": 3,
    "device": "cpu",
    "dtype": "float32",
    "compile": "no",
}
WALL = ("elapsed", "tokens_per_second")


class Listening(NullObserver):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


@pytest.fixture(autouse=True)
def steady_log(monkeypatch):
    """Records at evaluations only: between them they come by the clock."""
    monkeypatch.setattr("makemore.training.trainer.LOG_INTERVAL", 1e9)


@pytest.fixture
def texts(tmp_path) -> dict[str, Path]:
    paths = {"lines": tmp_path / "words.txt", "text": tmp_path / "prose.txt"}
    paths["lines"].write_text(words(80), encoding="utf-8")
    paths["text"].write_text(prose()[:2000], encoding="utf-8")
    return paths


def request_for(path: Path, name: str, out: Path, **train: Any) -> TrainRequest:
    known = {field.name for field in dataclasses.fields(MODELS.get(name).Config)}
    settings = tuple(f"model.{key}={value}" for key, value in SMALL.items() if key in known)
    return TrainRequest(str(path), name, out=out, train={**TRAIN, **train}, settings=settings)


def stop_after(request: TrainRequest, asked: int) -> None:
    """Train until someone has asked so many times; a run may end before."""
    answers = itertools.chain([False] * asked, itertools.repeat(True))
    with pytest.raises(TrainingInterrupted):
        train(request, stop=lambda: next(answers))


def resume(request: TrainRequest, observer: Listening | None = None, **changed: Any) -> TrainResult:
    again = TrainRequest(request.input, request.model, out=request.out, train=changed, resume=True)
    return train(again, observer)


def state_of(out: Path) -> dict[str, Any]:
    folder = RunDir(out)
    state = folder.read_state(folder.read_config()["run_id"]).state
    for name in ("elapsed", "_eval_seconds"):
        del state["trainer"][name]
    return state


def same(a: Any, b: Any) -> bool:
    """Equality of nested states, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def metrics_of(out: Path) -> list[dict[str, Any]]:
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in WALL} for line in lines]


@pytest.mark.parametrize("mode", ["lines", "text"])
@pytest.mark.parametrize("name", GRADIENT)
def test_all_of_a_state(name, mode, texts, tmp_path):
    """Weights, moments, averages, carried state, random numbers, early stopping, place, metrics."""
    whole, cut = (request_for(texts[mode], name, tmp_path / out) for out in ("whole", "cut"))
    train(whole)
    for asked in (4, 3):
        stop_after(cut, asked)
        cut = dataclasses.replace(cut, resume=True, train={}, settings=())
    resume(cut)
    assert same(state_of(tmp_path / "cut"), state_of(tmp_path / "whole"))
    assert metrics_of(tmp_path / "cut") == metrics_of(tmp_path / "whole")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")
@pytest.mark.parametrize("mode", ["lines", "text"])
@pytest.mark.parametrize("name", [name for name in GRADIENT if not issubclass(MODELS.get(name), ManualModel)])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(backend, name, mode, texts, tmp_path, monkeypatch):
    """By all of the compiler but its code generator, and by that: C++ made for this test."""
    if backend == "inductor":
        if not any(map(shutil.which, ("g++", "c++", "clang++"))):
            pytest.skip("no compiler of C++")
        # Of one length, as many a batch: each other shape would be compiled anew.
        texts["lines"].write_text(
            "\n".join(w[:4] for w in words(600).split() if len(w) >= 4), encoding="utf-8"
        )
    clear_caches()  # of what was compiled for other tests: a new process has none either
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    compiled = functools.partial(torch.compile, backend=backend)
    monkeypatch.setattr(torch, "compile", compiled)
    asked = {"compile": "yes", "steps": 4, "eval_interval": 2, "batch_tokens": 160}
    whole, cut = (request_for(texts[mode], name, tmp_path / out, **asked) for out in ("whole", "cut"))
    assert train(whole).used["compiled"]
    stop_after(cut, 3)
    assert resume(cut).used["compiled"]
    assert any((tmp_path / "compiled").rglob("*.so")) == (backend == "inductor")
    assert same(state_of(tmp_path / "cut"), state_of(tmp_path / "whole"))


def test_given_up_compiling(texts, tmp_path, monkeypatch):
    """What was drawn until then is drawn again: each part of a run gives up at a step of its own."""

    def fails(*_: Any) -> None:
        torch.rand(7)
        raise RuntimeError("nothing to compile with")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fails)
    whole, cut = (
        request_for(texts["text"], "mlp", tmp_path / out, compile="yes") for out in ("whole", "cut")
    )
    assert "nothing to compile with" in train(whole).used["not_compiled"]
    stop_after(cut, 5)
    assert not resume(cut).used["compiled"]
    assert same(state_of(tmp_path / "cut"), state_of(tmp_path / "whole"))


def test_stopping_early(texts, tmp_path):
    """The evaluations that were no better before a stop count after it."""
    settings = {"steps": 60, "lr": 0.0, "eval_interval": 3, "patience": 4, "optimizer": "adamw"}
    whole, cut = (request_for(texts["text"], "mlp", tmp_path / out, **settings) for out in ("whole", "cut"))
    stop_after(cut, 8)
    results = [train(whole), resume(cut)]
    assert all(result.stopped_early for result in results)
    assert results[0].steps == results[1].steps == 15
    assert metrics_of(tmp_path / "cut") == metrics_of(tmp_path / "whole")
    assert [line["step"] for line in metrics_of(tmp_path / "whole")] == [1, 3, 6, 9, 12, 15]


@pytest.fixture
def clock(monkeypatch):
    """A second passes whenever someone looks."""
    ticks = itertools.count()
    monkeypatch.setattr("makemore.training.trainer.time.perf_counter", lambda: float(next(ticks)))


def test_time_already_used_counts(texts, tmp_path, clock):
    settings = {"steps": None, "max_time": 60.0, "save_interval": 1e9, "eval_interval": 5, "patience": 0}
    whole, cut = (request_for(texts["text"], "mlp", tmp_path / out, **settings) for out in ("whole", "cut"))
    results = [train(whole)]
    stop_after(cut, 17)
    results.append(resume(cut))
    assert results[0].steps == results[1].steps > 30
    assert same(state_of(tmp_path / "cut"), state_of(tmp_path / "whole"))
    assert metrics_of(tmp_path / "cut") == metrics_of(tmp_path / "whole")


class TestChanges:
    @pytest.fixture
    def stopped(self, texts, tmp_path) -> TrainRequest:
        request = request_for(texts["lines"], "mlp", tmp_path / "run")
        stop_after(request, 5)
        return request

    def test_more_steps_are_told_and_kept(self, stopped):
        told = Listening()
        resume(stopped, told, steps=14)
        assert any("train.steps: 10 -> 14; from here on the learning rate" in line for line in told.told)
        config = RunDir(stopped.out).read_config()
        assert config["train"]["steps"] == 14
        assert [entry["step"] for entry in config["resumed"]] == [5]
        told = Listening()
        assert resume(stopped, told).steps == 14
        assert not any("->" in line for line in told.told)

    def test_other_surroundings_are_told(self, stopped):
        folder = RunDir(stopped.out)
        config = folder.read_config()
        folder.write_config({**config, "threads": 7, "versions": {**config["versions"], "torch": "2.0"}})
        told = Listening()
        resume(stopped, told)
        assert any(line.startswith("threads: 7 -> 1; results may differ") for line in told.told)
        assert any(line.startswith("torch 2.0 -> ") for line in told.told)

    def test_another_tokenizer_is_refused(self, stopped):
        other = TrainRequest(stopped.input, "mlp", "byte", stopped.out, resume=True)
        with pytest.raises(UserError, match="the run's tokenizer is char, not byte"):
            train(other)
        assert train(dataclasses.replace(other, tokenizer="char")).steps == STEPS

    @pytest.mark.parametrize(
        ("section", "change", "said"),
        [
            ("train", {"lr": 0.5}, "train.lr was"),
            ("train", {"seed": 3}, "train.seed was 0, not 3"),
            ("train", {"grad_accum_steps": 4}, "train.grad_accum_steps was 2, not 4"),
            ("corpus", {"mode": "text"}, "corpus.mode was lines, not text"),
            ("corpus", {"split": "0.5,0.25,0.25"}, "corpus.split was"),
        ],
    )
    def test_what_would_be_another_run_is_refused(self, stopped, section, change, said):
        again = TrainRequest(stopped.input, "mlp", out=stopped.out, resume=True)
        with pytest.raises(UserError, match=said):
            train(dataclasses.replace(again, **{section: change}))

    def test_the_same_values_in_other_words_are_no_change(self, stopped):
        settings = ("train.ema=9e-1", "model.n_hidden=16.0", "corpus.mode=auto")
        again = TrainRequest(stopped.input, "mlp", out=stopped.out, resume=True, settings=settings)
        assert train(again).steps == STEPS

    @pytest.mark.parametrize("budget", [{"steps": 0}, {"max_time": 0.0}])
    def test_no_budget_is_refused(self, stopped, budget):
        with pytest.raises(UserError, match="must be"):
            resume(stopped, **budget)

    def test_a_run_that_has_ended_says_so(self, stopped):
        resume(stopped)
        told = Listening()
        assert resume(stopped, told).steps == STEPS
        assert any(f"the run has ended at step {STEPS}" in line for line in told.told)

    def test_one_that_stopped_early_goes_on_with_more_patience(self, texts, tmp_path):
        request = request_for(
            texts["lines"], "mlp", tmp_path / "run", steps=30, lr=0.0, patience=2, optimizer="adamw"
        )
        assert train(request).steps == 9
        told = Listening()
        assert resume(request, told, steps=40).steps == 9
        assert any("raise train.patience" in line for line in told.told)
        assert resume(request, patience=0).steps == 40
