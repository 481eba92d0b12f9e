"""Every rung from training to samples on a CUDA that is pretended: as on the CPU, in one place at a time."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from makemore.models import MODELS
from makemore.training.learners.gradient import GradientLearner
from tests.cli.conftest import call, prose, train, words
from tests.runtime.fake_cuda import CUDA, pretended_cuda

RUNGS = [name for name in MODELS if MODELS.get(name).is_trainable]
SMALL = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_hidden": 16, "block_size": 16}
WAITING = {"batchnorm-mlp": {"aten.nonzero"}}
"""By hand, batch normalisation sees the examples that count and no others."""


@pytest.fixture(params=["lines", "text"])
def text(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(words(80) if request.param == "lines" else prose()[:2000], encoding="utf-8")
    return path


def test_the_pretence_refuses_and_writes_down() -> None:
    with pretended_cuda() as pretence:
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        assert there.device == CUDA
        with pytest.raises(RuntimeError, match="two devices"):
            there + here
        assert (there + there.to("cuda") * torch.tensor(2.0)).device == CUDA
        assert not pretence.waits
        assert there.sum().item() == 3
        assert there.cpu().tolist() == [1, 1, 1]
        assert pretence.waits == ["aten._local_scalar_dense", "aten._to_copy"]


def outcome(text: Path, name: str, run: Path, device: str, sampled: Path) -> tuple[float, str]:
    """Nats per token of a run that is trained, resumed and scored on a device; samples there of another."""
    known = {field.name for field in dataclasses.fields(MODELS.get(name).Config)}
    small = [f"model.{key}={size}" for key, size in SMALL.items() if key in known]
    chosen = ["train.ema=0.9", "train.grad_accum_steps=2", "train.block_size=16", *small]
    settings = [word for setting in chosen for word in ("--set", setting)]
    there = ("--device", device)
    train(text, "-m", name, "--out", run, "--steps", 4, "--dtype", "float32", *settings, *there)
    train(text, "-m", name, "--out", run, "--steps", 7, "--resume", *there)
    scored = call("eval", run, "--no-report", "--json", *there)
    samples = call("sample", sampled, "-n", 3, "--seed", 1, "--max-new-tokens", 24, *there)
    assert scored.status == samples.status == 0, scored.err + samples.err
    return json.loads(scored.out)["nll"], samples.out


@pytest.mark.parametrize("name", RUNGS)
def test_from_training_to_samples(
    name: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "here"
    here = outcome(text, name, run, "cpu", run)
    waits = set[str]()
    with pretended_cuda() as pretence:
        step = GradientLearner.step

        def watched(*arguments: Any) -> Any:
            before = len(pretence.waits)
            metrics = step(*arguments)
            waits.update(pretence.waits[before:])
            return metrics

        monkeypatch.setattr(GradientLearner, "step", watched)
        there = outcome(text, name, tmp_path / "there", "cuda", run)
    assert there[0] == pytest.approx(here[0], rel=1e-4)
    assert there[1] == here[1]
    assert waits == WAITING.get(name, set())
