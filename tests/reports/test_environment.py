"""Faults reported with terminals, shells and file systems; comments describe the reports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from makemore.cli.options import quote_command
from makemore.corpus.source import resolve_source
from makemore.runs.run import load
from tests.cli.conftest import call, train
from tests.cli.conftest import refused as refused
from tests.cli.conftest import trained_runs as trained_runs
from tests.cli.conftest import work as work

posix = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program = f"{sys.executable} -m makemore"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    return subprocess.run(
        ["sh", "-c", command.replace("makemore", program, 1)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


# Programs started by cron or a service manager without standard streams.
@posix
@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(work, closed):
    result = shell(f"makemore train words.txt -m count --out closed {closed}", work)
    assert result.returncode == 0, result
    assert "Traceback" not in result.stderr
    assert call("check", "closed").status == 0
    train("words.txt", "-m", "count", "--out", "open")
    samples = [(work / run / "samples.txt").read_bytes() for run in ("closed", "open")]
    assert samples[0] == samples[1]  # no message ended up in the file


@posix
def test_reading_from_a_closed_stdin_is_a_user_error(work):
    result = shell("makemore tokenize - <&-", work)
    assert result.returncode == 2
    assert result.stderr.startswith("makemore: ")
    assert result.stderr.count("\n") == 1


@posix
def test_a_deleted_working_directory_is_a_user_error(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    result = shell(f"rmdir {gone}; makemore models", gone)
    assert result.returncode == 2
    assert result.stderr == "makemore: the working directory doesn't exist any more; change to another one\n"


# A suggested command that fails when it is pasted, because a path has a space.
@posix
def test_suggested_commands_can_be_pasted(work):
    result = train("words.txt", "-m", "count", "--out", "my poems' run")
    command = next(line for line in result.err.splitlines() if line.startswith("sample more: "))
    pasted = shell(f"{command.removeprefix('sample more: ')} -n 2", work)
    assert pasted.returncode == 0, pasted
    assert len(pasted.stdout.splitlines()) == 2


def test_quoted_commands_leave_plain_words_alone():
    assert quote_command("makemore", "sample", "checkpoints/names-lstm") == (
        "makemore sample checkpoints/names-lstm"
    )


# A folder that is read many times, or without end, because links lead back to it.
@posix
def test_linked_files_and_folders_are_read_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "self").symlink_to(".", target_is_directory=True)
        (tmp_path / name / "up").symlink_to("..", target_is_directory=True)
    (tmp_path / "one" / "a.txt").write_text("smith\ndalton\n" * 20, encoding="utf-8")
    (tmp_path / "two" / "deep" / "b.txt").write_text("baker\nmiller\n" * 20, encoding="utf-8")
    (tmp_path / "two" / "c.txt").symlink_to("deep/b.txt")
    os.link(tmp_path / "one" / "a.txt", tmp_path / "one" / "z.txt")
    source = resolve_source(".")
    assert source.parts == ("one/a.txt", "two/deep/b.txt") or source.parts == ("one/a.txt", "two/c.txt")
    assert source.n_repeated == 2
    assert len(resolve_source("one", "two/**/*.txt").parts) == 2
    note = "skipped 2 links to files that are read already"
    assert note in train(".", "-m", "count", "--out", tmp_path / "run").err


# A report written over the text it reports on.
@pytest.mark.parametrize(
    "command",
    [
        ["score", "text", "prose.txt", "--html", "prose.txt"],
        ["score", "text", "prose.txt", "--html", "text/config.json"],
        ["compare", "text", "--html", "words.txt"],
        ["lr-find", "words.txt", "-m", "bigram", "--steps", "10", "--out", "notes.png"],
    ],
)
def test_outputs_never_replace_files_of_another_kind(refused, work, command):
    (work / "notes.png").write_text("not a picture", encoding="utf-8")
    assert "the file exists and is of another kind; choose another path" in refused(*command)


def test_outputs_replace_earlier_ones(work):
    for _ in range(2):
        assert call("score", "text", "prose.txt", "--html", "page.html").status == 0
        sweep = call("lr-find", "words.txt", "-m", "bigram", "--steps", "10", "--out", "plot.svg")
        assert sweep.status == 0, sweep.err


# An option that is accepted and ignored.
@pytest.mark.parametrize("spec", ["char:999", "byte:1", "char:"])
@pytest.mark.parametrize("command", ["train", "tokenize"])
def test_a_tokenizer_without_options_refuses_one(work, command, spec):
    result = call(command, "words.txt", "-t", spec)
    assert result.status == 2
    assert f"takes no option; use {spec.partition(':')[0]}" in result.err


# Bytes appended to a log after its checksum was stored, which `check` overlooked.
def test_bytes_added_to_a_finished_log_are_damage(work):
    train("words.txt", "-m", "bigram", "--steps", "3", "--out", "bigram")
    assert call("check", "bigram").status == 0
    with (work / "bigram" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 4}\n')
    result = call("check", "bigram")
    assert result.status == 2
    assert "12 bytes were added after the run ended" in result.out + result.err


# A text that has become shorter is called too short, although it has changed.
@pytest.mark.parametrize("content", ["", "\n\n", "aaaa", "one line", "ab\ncd\n", "\0binary"])
def test_a_training_text_that_changed_is_called_changed(work, content):
    (work / "copy.txt").write_text((work / "words.txt").read_text(encoding="utf-8"), encoding="utf-8")
    train("copy.txt", "-m", "bigram", "--steps", "3", "--out", "run")
    (work / "copy.txt").write_text(content, encoding="utf-8")
    assert "copy.txt has changed since run was trained" in call("eval", "run").err
    resumed = call("train", "copy.txt", "-m", "bigram", "--steps", "6", "--out", "run", "--resume")
    assert "copy.txt is not the text run was trained on" in resumed.err
    scored = call("eval", "run", "copy.txt", "--split", "val")
    assert scored.status == 2
    assert "changed" not in scored.err


# Training that stops in the middle of a text and is resumed: a traceback in the counting of a long document.
@pytest.mark.parametrize("text", ["words.txt", "prose.txt"])
def test_counting_continues_where_its_steps_ended(work, text):
    settings = ["-m", "count", "--set", "model.order=3", "--set", "train.batch_tokens=256"]
    train(text, *settings, "--steps", 3, "--out", "parts")
    train(text, *settings, "--steps", 5, "--out", "parts", "--resume")
    train(text, *settings, "--steps", 5, "--out", "whole")
    parts, whole = (load(run).model.state_dict() for run in ("parts", "whole"))
    assert parts.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(parts[name], tensor), name
