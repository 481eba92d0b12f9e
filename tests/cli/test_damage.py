"""Damaged run directories, files of other runs, and missing or changed texts."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.cli.conftest import call, train

pytestmark = pytest.mark.slow

REQUIRED_FILES = ("config.json", "tokenizer.json", "model.safetensors", "weights.json")


def flip_bit(path, other_run):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path, other_run):
    path.write_bytes(path.read_bytes()[:-9])


def empty(path, other_run):
    path.write_bytes(b"")


def remove(path, other_run):
    path.unlink()


def write_garbage(path, other_run):
    path.write_bytes(b"\x80\xff not ours")


def copy_other_run(path, other_run):
    shutil.copy(other_run / path.name, path)


def write_object(path, other_run):
    path.write_text(json.dumps({"format": 1, "model": "mine"}))


def write_list(path, other_run):
    path.write_text("[1, 2]")


def replace_with_folder(path, other_run):
    path.unlink()
    path.mkdir()


DAMAGES = (flip_bit, truncate, empty, remove, write_garbage, write_object, write_list, replace_with_folder)


@pytest.mark.parametrize("name", REQUIRED_FILES)
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("command", ["eval", "sample"])
def test_a_damaged_run_is_refused(refused, work, name, damage, command):
    damage(work / "lines" / name, work / "text")
    assert name.partition(".")[0] in refused(command, "lines")


@pytest.mark.parametrize("name", REQUIRED_FILES)
def test_a_file_of_another_run_is_refused(refused, work, name):
    copy_other_run(work / "lines" / name, work / "text")
    assert "belongs to another run" in refused("sample", "lines")


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.txt", "result.json"])
@pytest.mark.parametrize("damage", [flip_bit, truncate, empty, remove, write_garbage])
def test_sample_and_eval_ignore_damaged_reports(work, name, damage):
    damage(work / "lines" / name, work / "text")
    assert call("sample", "lines").status == 0
    assert call("eval", "lines").status == 0


@pytest.mark.parametrize("damage", [flip_bit, truncate, empty, write_garbage, write_object])
def test_compare_refuses_a_damaged_result(refused, work, damage):
    damage(work / "lines" / "result.json", work / "text")
    assert "result.json is damaged" in refused("compare", "lines")


def test_newer_format_is_refused(refused, work):
    from makemore.runtime.files import read_json, write_json

    config = read_json(work / "lines" / "config.json")
    write_json(work / "lines" / "config.json", {**config, "format": 99})
    assert "has format 99; this version of makemore reads 2" in refused("sample", "lines")


class TestTrainingText:
    def test_missing_text_is_refused_by_eval_only(self, refused, work):
        (work / "copy.txt").write_text((work / "words.txt").read_text())
        train("copy.txt", "-m", "count", "--out", "run")
        (work / "copy.txt").unlink()
        assert "is missing or is not a regular file" in refused("eval", "run")
        assert call("sample", "run").status == 0
        assert call("eval", "run", "words.txt", "--split", "val").status == 0

    def test_changed_text_is_refused_by_eval_only(self, refused, work):
        (work / "copy.txt").write_text((work / "words.txt").read_text())
        train("copy.txt", "-m", "count", "--out", "run")
        (work / "copy.txt").write_text("dala\n" + (work / "words.txt").read_text())
        assert "has changed since run was trained" in refused("eval", "run")
        assert call("sample", "run").status == 0

    def test_byte_order_mark_and_line_endings_do_not_count_as_changes(self, work):
        text = (work / "words.txt").read_text()
        (work / "copy.txt").write_text(text)
        train("copy.txt", "-m", "count", "--out", "run")
        before = call("eval", "run", "--json").out
        (work / "copy.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
        assert call("eval", "run", "--json").out == before


class TestResuming:
    @pytest.fixture
    def run(self, work):
        train("words.txt", "-m", "bigram", "--steps", "3", "--out", "run")
        return work / "run"

    @pytest.mark.parametrize("name", ["state.json", "tensors.safetensors"])
    @pytest.mark.parametrize("damage", DAMAGES)
    def test_refused_if_every_state_is_damaged(self, refused, run, name, damage):
        for state in (run / "state").iterdir():
            damage(state / name, run)
        resume = ["words.txt", "-m", "bigram", "--steps", "6", "--out", "run", "--resume"]
        assert "no state to resume from" in refused("train", *resume)

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_falls_back_if_the_newest_state_is_damaged(self, run, damage):
        resume = ["words.txt", "-m", "bigram", "--out", "run", "--resume"]
        train(*resume, "--steps", "6")
        states = sorted((run / "state").iterdir())
        assert len(states) == 2
        damage(states[-1] / "state.json", run)
        result = train(*resume, "--steps", "8")
        assert "falling back to the previous state" in result.err
        assert "resuming bigram at step 3" in result.err

    def test_refused_without_states(self, refused, run):
        shutil.rmtree(run / "state")
        resume = ["words.txt", "-m", "bigram", "--steps", "6", "--out", "run", "--resume"]
        assert "no state to resume from" in refused("train", *resume)

    def test_changed_settings_are_refused(self, refused, run):
        resume = ["words.txt", "-m", "bigram", "--out", "run", "--resume"]
        assert "train.optimizer.lr was" in refused("train", *resume, "--set", "train.lr=0.5")

    def test_more_steps_continue_the_run(self, run):
        resume = ["words.txt", "-m", "bigram", "--out", "run", "--resume", "--json"]
        result = train(*resume, "--steps", "7")
        assert "resuming bigram at step 3" in result.err
        assert json.loads(result.out)["steps"] == 7
