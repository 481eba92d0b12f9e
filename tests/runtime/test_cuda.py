"""A real GPU gives the CPU's results: training, scoring, sampling, saving and resuming, for every model.

Skipped where there is no GPU, unless MAKEMORE_TEST_DEVICE names another device to compare with the CPU.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from makemore.evaluation.evaluate import evaluate
from makemore.models import MODELS
from makemore.models.base import CountModel
from makemore.runs.run import load
from makemore.sampling.logits import SampleParams
from makemore.sampling.text import SampleRequest, sample
from makemore.training.assembly import make_trainer
from makemore.training.observers import Observer
from makemore.training.planning import prepare
from makemore.training.request import TrainRequest
from makemore.training.train import train
from tests.cli.conftest import prose, words

DEVICE = os.environ.get("MAKEMORE_TEST_DEVICE", "cuda")
TRAINABLE_MODELS = [name for name in MODELS if MODELS.get(name).is_trainable]
SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_hidden": 32, "block_size": 16, "dropout": 0}
STEPS = 10

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # compilation warns
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no GPU"),
]


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """Without TF32, whose products have ten bits."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = allowed


@pytest.fixture(params=["lines", "text"])
def text(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(words(120) if request.param == "lines" else prose(), encoding="utf-8")
    return path


def request(text: Path, name: str, device: str, out: Path, **settings: Any) -> TrainRequest:
    fields = MODELS.get(name).Config.model_fields
    sizes = [f"model.{key}={size}" for key, size in SMALL.items() if key in fields]
    # Recipes differ between devices.
    options = {"steps": STEPS, "batch_tokens": 256, "block_size": 16, "lr": 0.01, "matrix_lr": 0.02}
    train = {**options, "dtype": "float32", "device": device, **settings}
    return TrainRequest(input=str(text), model=name, out=out, train=train, settings=tuple(sizes))


def losses(request_: TrainRequest) -> list[float]:
    """The loss of each training step."""
    plan = prepare(request_, Observer())
    trainer = make_trainer(plan, lambda: False)
    losses = []
    for step in range(STEPS):
        metrics = trainer.advance(step / STEPS)
        assert metrics is not None
        assert metrics.loss is not None
        losses.append(float(metrics.loss))
    trainer.learner.check()
    assert not trainer.learner.note, trainer.learner.note
    return losses


def is_counted(name: str) -> bool:
    return issubclass(MODELS.get(name), CountModel)


@pytest.mark.parametrize("compiled", ["no", "yes"])
@pytest.mark.parametrize("name", [name for name in TRAINABLE_MODELS if not is_counted(name)])
def test_ten_steps_match_the_cpu(name: str, compiled: str, text: Path, tmp_path: Path) -> None:
    cpu = losses(request(text, name, "cpu", tmp_path / "cpu", compile="no"))
    device = losses(request(text, name, DEVICE, tmp_path / "device", compile=compiled))
    assert device == pytest.approx(cpu, rel=1e-4)


@pytest.mark.parametrize("name", [name for name in TRAINABLE_MODELS if not is_counted(name)])
def test_bfloat16_stays_close(name: str, text: Path, tmp_path: Path) -> None:
    cpu = losses(request(text, name, "cpu", tmp_path / "cpu", compile="no"))
    device = losses(request(text, name, DEVICE, tmp_path / "device", dtype="bfloat16", compile="no"))
    assert device == pytest.approx(cpu, rel=2e-2)


@pytest.mark.parametrize("name", TRAINABLE_MODELS)
def test_runs_move_between_devices(name: str, text: Path, tmp_path: Path) -> None:
    """A run trained on either device scores, samples greedily and resumes alike on both."""
    for trained_on in {"cpu", DEVICE}:
        folder = tmp_path / f"on {trained_on}"
        train(request(text, name, trained_on, folder, compile="no"))
        results = []
        for used_on in ("cpu", DEVICE):
            run = load(folder, used_on)
            samples = sample(run, SampleRequest(n=2, params=SampleParams(greedy=True), max_new_tokens=40))
            results.append((evaluate(run).nll, list(samples)))
        assert results[1][0] == pytest.approx(results[0][0], rel=1e-4)
        assert results[1][1] == results[0][1]


@pytest.mark.parametrize("name", [name for name in TRAINABLE_MODELS if not is_counted(name)])
def test_resuming_on_either_device_continues_the_same_run(name: str, text: Path, tmp_path: Path) -> None:
    settings = {"schedule": "constant", "compile": "no"}
    whole = train(request(text, name, "cpu", tmp_path / "whole", steps=2 * STEPS, **settings)).score.nll
    for first, then in {(DEVICE, DEVICE), (DEVICE, "cpu"), ("cpu", DEVICE)}:
        folder = tmp_path / f"{first}-{then}"
        train(request(text, name, first, folder, **settings))
        longer = request(text, name, then, folder, steps=2 * STEPS, **settings)
        assert train(dataclasses.replace(longer, resume=True)).score.nll == pytest.approx(whole, rel=1e-3)
