"""Runs and settings files of earlier versions keep working."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from makemore import load
from makemore.runs.directory import RunDir
from makemore.runs.verification import check_run
from makemore.runtime.files import read_json
from makemore.settings import TrainConfig, parse
from makemore.settings.base import flatten
from tests.cli.conftest import call

OLD = Path(__file__).with_name("old")


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(OLD, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


@pytest.mark.parametrize("name", ["finished", "count", "mixture", "lstm", "transformer"])
def test_a_finished_run_loads_scores_and_samples(old: Path, name: str) -> None:
    recorded = RunDir(old / name).read_result()
    assert recorded is not None
    run = load(old / name, "cpu")
    score = run.evaluate("val", file="words.txt")
    # Earlier count models gave blank lines some probability.
    expected = recorded.val.nll - (0.0002064 if name == "count" else 0)
    assert score.nll == pytest.approx(expected, abs=1e-5)
    assert len(run.sample(n=3, seed=1)) == 3


@pytest.mark.parametrize("name", ["finished", "mixture", "lstm", "transformer"])
def test_a_run_passes_its_checks(old: Path, name: str) -> None:
    assert check_run(old / name) == []


def test_a_run_of_format_1_resumes_and_is_written_in_format_2(old: Path) -> None:
    arguments = ["train", "words.txt", "-m", "lstm", "--out", "lstm", "--resume"]
    assert call(*arguments, "--steps", "32").status == 0
    assert RunDir(old / "lstm").read_result().tokens > 30 * 27
    written = read_json(old / "lstm" / "config.json")
    assert (written["format"], written["model"]["name"], written["train"]["optimizer"]["name"]) == (
        2,
        "lstm",
        "muon",
    )
    assert "train.optimizer.lr was" in call(*arguments, "--steps", "32", "--set", "train.lr=9").err


def test_an_earlier_transformer_has_no_gates_and_resumes(old: Path) -> None:
    config = RunDir(old / "transformer").read_config().model
    assert (config.gate, config.score_scale) == (False, 1.0)
    arguments = ["train", "words.txt", "-m", "transformer", "--out", "transformer", "--resume"]
    assert call(*arguments, "--steps", "32").status == 0
    assert RunDir(old / "transformer").read_config().model.gate is False


def test_a_stopped_run_resumes_to_the_weights_of_an_undisturbed_one(old: Path) -> None:
    resumed = call("train", "words.txt", "-m", "mlp", "--out", "stopped", "--resume")
    assert resumed.status == 0, resumed
    expected, model = load("finished", "cpu").model, load("stopped", "cpu").model
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("earlier", "current"), TrainConfig.aliases.items())
def test_earlier_names_of_settings_are_read(earlier: str, current: str) -> None:
    whole = ("block_size", "grad_accum_steps", "steps", "warmup_steps")
    value = 4 if current in whole else "0.25,0.5" if current == "milestones" else 0.25
    config = flatten(parse(TrainConfig, {earlier: value}).model_dump())
    assert {v for name, v in config.items() if name.rpartition(".")[2] == current} == {value}


def test_a_settings_file_with_earlier_names(old: Path) -> None:
    (old / "old.toml").write_text(
        '[train]\naccumulate = 2\ndecay_share = 0.5\nfinal_lr = 0.1\ndrop_at = "0.5"\n', encoding="utf-8"
    )
    done = call("train", "words.txt", "-m", "bigram", "--steps", "3", "--config", "old.toml", "--out", "new")
    assert done.status == 0, done
    train = RunDir(old / "new").read_config().train
    assert (train.data.grad_accum_steps, train.schedule.warmdown_fraction) == (2, 0.5)
    assert (train.schedule.final_lr_fraction, train.schedule.milestones) == (0.1, "0.5")
