"""Faults reported from daily use: files, names and commands; comments describe the reports."""

from __future__ import annotations

import pytest

from makemore.runs.run import load
from makemore.runs.verification import check_run
from tests.cli.conftest import call, train
from tests.cli.conftest import refused as refused
from tests.cli.conftest import trained_runs as trained_runs
from tests.cli.conftest import work as work


# Two runs of one command whose weights have different checksums, so that nobody can reproduce a result.
@pytest.mark.parametrize("model", ["mlp", "count"])
def test_equal_runs_have_equal_weight_files(work, model):
    for out in ("first", "second"):
        train("words.txt", "-m", model, "--seed", "5", "--steps", "4", "--out", out)
    assert (work / "first/model.safetensors").read_bytes() == (work / "second/model.safetensors").read_bytes()
    train("words.txt", "-m", model, "--steps", "5", "--seed", "6", "--out", "third")
    for name in ("first", "second", "third"):
        assert check_run(name) == []


def test_weights_are_still_tied_to_their_run(work, refused):
    for out, seed in (("first", 5), ("second", 6)):
        train("words.txt", "-m", "mlp", "--seed", seed, "--steps", "4", "--out", out)
    weights = work / "first/model.safetensors"
    original = weights.read_bytes()
    weights.write_bytes((work / "second/model.safetensors").read_bytes())
    assert "belongs to another run" in refused("sample", "first")
    weights.write_bytes(original)
    record = work / "first/weights.json"
    record.write_bytes((work / "second/weights.json").read_bytes())
    assert "belongs to another run" in refused("sample", "first")
    record.unlink()
    assert "weights.json is missing" in refused("sample", "first")
    assert any("weights.json is missing" in problem for problem in check_run("first"))


def test_an_interruption_between_checksum_and_weights_is_harmless(work):
    run = load("lines", "cpu")
    weights = work / "lines/model.safetensors"
    before = weights.read_bytes()
    run.folder.write_model({"x": run.model.state_dict()["keys_1"]}, run.config["run_id"])
    weights.write_bytes(before)
    assert call("sample", "lines").status == 0
