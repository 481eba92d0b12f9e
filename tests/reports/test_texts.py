"""Faults reported with unusual files, encodings and typed texts; comments describe the reports."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from makemore.evaluation.surprisal import surprisal
from makemore.runs.run import load
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


# A stop string or prompt with Windows line ends, which no normalised text contains.
def test_typed_texts_have_the_line_ends_of_the_training_text(work):
    options = ["-n", "1", "--seed", "1", "--max-new-tokens", "2000"]
    result = call("sample", "text", *options, "--stop", "\r\n\r\n")
    assert result.out == call("sample", "text", *options, "--stop", "\n\n").out
    assert len(result.out) < 1500
    for typed in ("bread\r\n", "bread\r"):
        assert call("sample", "text", *options, "-p", typed).out.startswith("bread\n")
    run = load("text", "cpu")
    assert surprisal(run, "bread\r\n\r\nand").text == "bread\n\nand"
    assert call("inspect", "text", "--text", "bread\r\nand").status == 0


# A prompt that consists of a newline was refused as empty.
def test_a_newline_is_a_prompt(refused, work, monkeypatch):
    (work / "newline.txt").write_text("\n", encoding="utf-8")
    result = call("sample", "text", "--prompt-file", "newline.txt", "--seed", "1")
    assert result.out.startswith("\n")
    (work / "empty.txt").write_text("", encoding="utf-8")
    assert "empty.txt is empty" in refused("sample", "text", "--prompt-file", "empty.txt")
    assert "newline.txt is empty" in refused("sample", "lines", "--prompt-file", "newline.txt")


# "\n" typed as two characters in a shell (nanoGPT and gpt-2-simple users alike).
def test_a_newline_typed_as_two_characters_gets_a_hint(refused, work):
    hint = r"type a newline as $'\n' (bash, zsh)"
    assert hint in refused("sample", "text", "-p", r"bread:\n")
    assert hint in call("sample", "text", "-p", r"bread\n", "--unknown", "skip").err
    assert hint in call("sample", "text", "--stop", r"\n\n").err
    assert hint not in call("sample", "text", "-p", "bread\n").err


# A stop string with characters that the model can't generate never ends a sample.
@pytest.mark.parametrize(("run", "stop"), [("text", "###"), ("lines", "b\n")])
def test_a_stop_that_can_never_match_is_mentioned(work, run, stop):
    assert "--stop can never match" in call("sample", run, "--stop", stop).err
    assert "--stop can never match" not in call("sample", run, "--stop", "ad").err
