"""Training, scoring and sampling on a fake CUDA device give the same results as on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from makemore.models import MODELS
from makemore.models.base import CountModel
from makemore.training.learners.gradient import GradientLearner
from tests.cli.conftest import call, prose, train, words
from tests.runtime.fake_cuda import CUDA, fake_cuda

pytestmark = pytest.mark.slow

TRAINABLE_MODELS = [name for name in MODELS if MODELS.get(name).is_trainable]
SMALL = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_hidden": 16, "block_size": 16, "dropout": 0}
EXPECTED_SYNCS = {"batchnorm-mlp": {"aten.nonzero"}}
"""The hand-written batch norm selects the valid examples."""


def write_text(folder: Path, mode: str) -> Path:
    path = folder / "text.txt"
    path.write_text(words(80) if mode == "lines" else prose()[:2000], encoding="utf-8")
    return path


def test_fake_cuda_refuses_mixed_devices_and_records_syncs() -> None:
    with fake_cuda() as fake:
        on_cuda, on_cpu = torch.ones(3, device="cuda"), torch.ones(3)
        assert on_cuda.device == CUDA
        with pytest.raises(RuntimeError, match="two devices"):
            on_cuda + on_cpu
        assert (on_cuda + on_cuda.to("cuda") * torch.tensor(2.0)).device == CUDA
        assert not fake.syncs
        assert on_cuda.sum().item() == 3
        assert on_cuda.cpu().tolist() == [1, 1, 1]
        assert fake.syncs == ["aten._local_scalar_dense", "aten._to_copy"]


def outcome(text: Path, name: str, run: Path, device: str, sample_run: Path) -> tuple[float, str]:
    """Loss of a run trained, resumed and scored on a device, and samples from ``sample_run`` there."""
    fields = MODELS.get(name).Config.model_fields
    sizes = [f"model.{key}={size}" for key, size in SMALL.items() if key in fields]
    # The transformer's recipe depends on the device.
    rates = ["train.lr=0.01", "train.matrix_lr=0.02"] * (name == "transformer")
    batch = ["train.batch_tokens=2048", "train.grad_accum_steps=2", "train.block_size=16"]
    settings = ["train.ema=0.9", "train.eval_interval=5", *batch, *rates, *sizes]
    flags = [word for setting in settings for word in ("--set", setting)]
    on_device = ("--device", device)
    train(text, "-m", name, "--out", run, "--steps", 5, "--dtype", "float32", *flags, *on_device)
    train(text, "-m", name, "--out", run, "--steps", 7, "--resume", *on_device)
    scored = call("eval", run, "--no-report", "--json", *on_device)
    samples = call("sample", sample_run, "-n", 3, "--seed", 1, "--max-new-tokens", 20, *on_device)
    assert scored.status == samples.status == 0, scored.err + samples.err
    return json.loads(scored.out)["nll"], samples.out


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *((name, "lines") for name in TRAINABLE_MODELS),
        *((name, "text") for name in ("count", "lstm", "transformer")),
    ],
)
def test_training_and_sampling_match_the_cpu(
    name: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, run = write_text(tmp_path, mode), tmp_path / "cpu"
    # Samples are drawn below, fewer of them.
    monkeypatch.setattr("makemore.training.train.final_samples", lambda *arguments: [])
    cpu = outcome(text, name, run, "cpu", run)
    syncs = set[str]()
    with fake_cuda() as fake:
        step = GradientLearner.step

        def recording_step(*arguments: Any) -> Any:
            n_before = len(fake.syncs)
            metrics = step(*arguments)
            syncs.update(fake.syncs[n_before:])
            return metrics

        monkeypatch.setattr(GradientLearner, "step", recording_step)
        cuda = outcome(text, name, tmp_path / "cuda", "cuda", run)
    assert cuda[0] == pytest.approx(cpu[0], rel=1e-4)
    assert cuda[1] == cpu[1]
    assert syncs == EXPECTED_SYNCS.get(name, set())
    if name != "bigram" and not issubclass(MODELS.get(name), CountModel):
        assert fake.n_replays > 0
