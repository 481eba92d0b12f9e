"""Faults reported with unusual files, encodings and typed texts; comments describe the reports."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from makemore.runtime.files import read_json, write_json
from tests.cli.conftest import call, train, words
from tests.cli.conftest import refused as refused
from tests.cli.conftest import trained_runs as trained_runs
from tests.cli.conftest import work as work

linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems allow only UTF-8 in file names")


# A file name from an older system, in latin-1: training ran to the end and the result was lost.
@linux
@pytest.mark.parametrize("model", ["count", "transformer"])
def test_a_file_name_that_is_not_utf8(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    text, run, page = (os.fsdecode(name) for name in (b"po\xe8mes.txt", b"r\xe8un", b"p\xe8.html"))
    Path(text).write_text(words(60), encoding="utf-8")
    budget = [] if model == "count" else ["--steps", "4", "--set", "model.style=gpt2"]
    result = train(text, "-m", model, *budget, "--json")
    assert json.loads(result.out)["run"] == str(Path("checkpoints") / f"pomes-{model}")
    train(text, "-m", model, *budget, "--out", run)
    for command in (
        ["check", run],
        ["sample", run, "-n", "2"],
        ["eval", run],
        ["score", run, text, "--html", page],
        ["compare", run, "--html", page],
        ["inspect", run],
        ["train", text, "-m", model, *budget, "--out", run, "--resume"],
        ["export", run, "-f", "arpa" if model == "count" else "hf"],
        ["doctor", text, "--no-compile"],
    ):
        result = call(*command)
        assert result.status == 0, (command, result.err)
    if model == "transformer":
        for start in (run, f"{run}-hf"):
            train(text, "--init-from", start, "--steps", "2", "--out", "tuned", "--overwrite")


def test_json_with_a_name_that_is_not_utf8_is_valid_utf8(tmp_path):
    write_json(tmp_path / "a.json", {"path": "po\udce8mes \u00e8"})
    assert b"po\\udce8mes \xc3\xa8" in (tmp_path / "a.json").read_bytes()
    assert read_json(tmp_path / "a.json") == {"path": "po\udce8mes \u00e8"}
