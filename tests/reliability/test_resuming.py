"""A resumed run gives the same result, bit for bit, as an uninterrupted one; changes are reported."""

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
from makemore.training.observers import Observer
from makemore.training.records import TrainingInterrupted, TrainResult
from makemore.training.request import TrainRequest
from makemore.training.train import train
from tests.cli.conftest import prose, words

pytestmark = pytest.mark.slow

GRADIENT_MODELS = [
    name for name in MODELS if MODELS.get(name).is_trainable and not issubclass(MODELS.get(name), CountModel)
]
COMPILED_MODELS = [name for name in GRADIENT_MODELS if not issubclass(MODELS.get(name), ManualModel)]
SMALL_MODEL = {"n_layer": 1, "n_embd": 16, "n_hidden": 16, "n_head": 2, "block_size": 8, "dropout": 0.2}
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
TIMING_KEYS = ("elapsed", "tokens_per_second")


class RecordingObserver(Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(autouse=True)
def log_only_at_evaluations(monkeypatch):
    """Log only at evaluations; the log lines between them depend on the clock."""
    monkeypatch.setattr("makemore.training.trainer.LOG_INTERVAL", 1e9)


@pytest.fixture
def texts(tmp_path) -> dict[str, Path]:
    paths = {"lines": tmp_path / "words.txt", "text": tmp_path / "prose.txt"}
    paths["lines"].write_text(words(80), encoding="utf-8")
    paths["text"].write_text(prose()[:2000], encoding="utf-8")
    return paths


def request_for(path: Path, name: str, out: Path, **train: Any) -> TrainRequest:
    known = MODELS.get(name).Config.model_fields
    settings = tuple(f"model.{key}={value}" for key, value in SMALL_MODEL.items() if key in known)
    return TrainRequest(input=str(path), model=name, out=out, train={**TRAIN, **train}, settings=settings)


def stop_after(request: TrainRequest, n_polls: int) -> None:
    """Train, and interrupt once ``stop`` has been polled ``n_polls`` times."""
    answers = itertools.chain([False] * n_polls, itertools.repeat(True))
    with pytest.raises(TrainingInterrupted):
        train(request, stop=lambda: next(answers))


def resume(request: TrainRequest, observer: RecordingObserver | None = None, **changed: Any) -> TrainResult:
    resumed = TrainRequest(
        input=request.input, model=request.model, out=request.out, train=changed, resume=True
    )
    return train(resumed, observer)


def state_of(out: Path) -> dict[str, Any]:
    folder = RunDir(out)
    state = folder.states.read_newest(folder.read_config().run_id).state
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
    return [{k: v for k, v in json.loads(line).items() if k not in TIMING_KEYS} for line in lines]


@pytest.mark.parametrize("mode", ["lines", "text"])
@pytest.mark.parametrize("name", GRADIENT_MODELS)
def test_resume_restores_the_complete_state(name, mode, texts, tmp_path):
    """Compares weights, moments, averages, carried state, random generators, patience, data position, log."""
    full, cut = (request_for(texts[mode], name, tmp_path / out) for out in ("full", "cut"))
    train(full)
    for n_polls in (4, 3):
        stop_after(cut, n_polls)
        cut = dataclasses.replace(cut, resume=True, train={}, settings=())
    resume(cut)
    assert same(state_of(tmp_path / "cut"), state_of(tmp_path / "full"))
    assert metrics_of(tmp_path / "cut") == metrics_of(tmp_path / "full")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")
@pytest.mark.parametrize(
    ("backend", "name", "mode"),
    [
        *itertools.product(["aot_eager"], COMPILED_MODELS, ["lines"]),
        ("aot_eager", "lstm", "text"),
        ("aot_eager", "transformer", "text"),
        ("inductor", "transformer", "text"),
    ],
)
def test_resume_with_compiled_models(backend, name, mode, texts, tmp_path, monkeypatch):
    """Compiled without (aot_eager) and with (inductor) the slow code generator; its C++ is built anew."""
    if backend == "inductor" and not any(map(shutil.which, ("g++", "c++", "clang++"))):
        pytest.skip("no C++ compiler")
    # Words of one length, the same number per batch: each new shape would be compiled again.
    texts["lines"].write_text("\n".join(w[:4] for w in words(600).split() if len(w) >= 4), encoding="utf-8")
    clear_caches()  # drop other tests' compiled code, as a new process would
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    compiled = functools.partial(torch.compile, backend=backend)
    monkeypatch.setattr(torch, "compile", compiled)
    settings = {"compile": "yes", "steps": 4, "eval_interval": 2, "batch_tokens": 160}
    full, cut = (request_for(texts[mode], name, tmp_path / out, **settings) for out in ("full", "cut"))
    assert train(full).used["compiled"]
    stop_after(cut, 3)
    assert resume(cut).used["compiled"]
    assert any((tmp_path / "compiled").rglob("*.so")) == (backend == "inductor")
    assert same(state_of(tmp_path / "cut"), state_of(tmp_path / "full"))


def test_resume_after_failed_compilation(texts, tmp_path, monkeypatch):
    """A failed attempt leaves the random generators unchanged, at whichever step each part makes it."""

    def fails(*_: Any) -> None:
        torch.rand(7)
        raise RuntimeError("nothing to compile with")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fails)
    full, cut = (request_for(texts["text"], "mlp", tmp_path / out, compile="yes") for out in ("full", "cut"))
    assert "nothing to compile with" in train(full).used["not_compiled"]
    stop_after(cut, 5)
    assert not resume(cut).used["compiled"]
    assert same(state_of(tmp_path / "cut"), state_of(tmp_path / "full"))


def test_patience_counts_across_a_resume(texts, tmp_path):
    """Evaluations without improvement before an interruption count after it."""
    settings = {"steps": 60, "lr": 0.0, "eval_interval": 3, "patience": 4, "optimizer": "adamw"}
    full, cut = (request_for(texts["text"], "mlp", tmp_path / out, **settings) for out in ("full", "cut"))
    stop_after(cut, 8)
    results = [train(full), resume(cut)]
    assert all(result.stopped_early for result in results)
    assert results[0].steps == results[1].steps == 15
    assert metrics_of(tmp_path / "cut") == metrics_of(tmp_path / "full")
    assert [line["step"] for line in metrics_of(tmp_path / "full")] == [1, 3, 6, 9, 12, 15]


@pytest.fixture
def counting_clock(monkeypatch):
    """Clock that advances by a second each time it is read."""
    ticks = itertools.count()
    monkeypatch.setattr("makemore.training.trainer.time.perf_counter", lambda: float(next(ticks)))


def test_time_before_a_resume_counts(texts, tmp_path, counting_clock):
    settings = {"steps": None, "max_time": 60.0, "save_interval": 1e9, "eval_interval": 5, "patience": 0}
    full, cut = (request_for(texts["text"], "mlp", tmp_path / out, **settings) for out in ("full", "cut"))
    results = [train(full)]
    stop_after(cut, 17)
    results.append(resume(cut))
    assert results[0].steps == results[1].steps > 30
    assert same(state_of(tmp_path / "cut"), state_of(tmp_path / "full"))
    assert metrics_of(tmp_path / "cut") == metrics_of(tmp_path / "full")


class TestChanges:
    @pytest.fixture
    def stopped(self, texts, tmp_path) -> TrainRequest:
        request = request_for(texts["lines"], "mlp", tmp_path / "run")
        stop_after(request, 5)
        return request

    def test_more_steps_are_reported_and_saved(self, stopped):
        observer = RecordingObserver()
        resume(stopped, observer, steps=14)
        assert any("train.steps: 10 -> 14; from here on the learning rate" in line for line in observer.notes)
        config = RunDir(stopped.out).read_config()
        assert config.train.steps == 14
        assert [entry.step for entry in config.resumed] == [5]
        observer = RecordingObserver()
        assert resume(stopped, observer).steps == 14
        assert not any("->" in line for line in observer.notes)

    def test_changed_environment_is_reported(self, stopped):
        folder = RunDir(stopped.out)
        config = folder.read_config()
        environment = config.environment.model_copy(update={"threads": 7})
        changes = {"environment": environment, "versions": {**config.versions, "torch": "2.0"}}
        folder.write_config(config.model_copy(update=changes))
        observer = RecordingObserver()
        resume(stopped, observer)
        assert any(line.startswith("threads: 7 -> 1; results may differ") for line in observer.notes)
        assert any(line.startswith("torch: 2.0 -> ") for line in observer.notes)

    def test_another_tokenizer_is_refused(self, stopped):
        other = TrainRequest(input=stopped.input, model="mlp", tokenizer="byte", out=stopped.out, resume=True)
        with pytest.raises(UserError, match="tokenizer was char, not byte; a resumed run keeps"):
            train(other)
        assert train(dataclasses.replace(other, tokenizer="char")).steps == STEPS

    @pytest.mark.parametrize(
        ("section", "change", "message"),
        [
            ("train", {"lr": 0.5}, "train.optimizer.lr was"),
            ("train", {"seed": 3}, "train.seed was 0, not 3"),
            ("train", {"grad_accum_steps": 4}, "train.data.grad_accum_steps was 2, not 4"),
            ("corpus", {"mode": "text"}, "corpus.mode was lines, not text"),
            ("corpus", {"split": "0.5,0.25,0.25"}, "corpus.split was"),
        ],
    )
    def test_settings_that_change_results_are_refused(self, stopped, section, change, message):
        resumed = TrainRequest(input=stopped.input, model="mlp", out=stopped.out, resume=True)
        with pytest.raises(UserError, match=message):
            train(dataclasses.replace(resumed, **{section: change}))

    def test_equal_values_written_differently_are_accepted(self, stopped):
        settings = ("train.ema=9e-1", "model.n_hidden=16.0", "corpus.mode=auto")
        resumed = TrainRequest(
            input=stopped.input, model="mlp", out=stopped.out, resume=True, settings=settings
        )
        assert train(resumed).steps == STEPS

    @pytest.mark.parametrize("budget", [{"steps": 0}, {"max_time": 0.0}])
    def test_zero_budget_is_refused(self, stopped, budget):
        with pytest.raises(UserError, match="must be"):
            resume(stopped, **budget)

    def test_finished_run_is_reported(self, stopped):
        resume(stopped)
        observer = RecordingObserver()
        assert resume(stopped, observer).steps == STEPS
        assert any(f"the run ended at step {STEPS}" in line for line in observer.notes)

    def test_early_stopped_run_continues_with_more_patience(self, texts, tmp_path):
        request = request_for(
            texts["lines"], "mlp", tmp_path / "run", steps=30, lr=0.0, patience=2, optimizer="adamw"
        )
        assert train(request).steps == 9
        observer = RecordingObserver()
        assert resume(request, observer, steps=40).steps == 9
        assert any("raise the budget, and train.patience" in line for line in observer.notes)
        assert resume(request, patience=0).steps == 40
