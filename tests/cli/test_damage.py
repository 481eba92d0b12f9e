"""Run directories that are damaged, foreign or without their text."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.cli.conftest import call, train

NEEDED = ("config.json", "tokenizer.json", "model.safetensors")


def flip(path, other):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path, other):
    path.write_bytes(path.read_bytes()[:-9])


def empty(path, other):
    path.write_bytes(b"")


def remove(path, other):
    path.unlink()


def garble(path, other):
    path.write_bytes(b"\x80\xff not ours")


def foreign(path, other):
    shutil.copy(other / path.name, path)


def not_ours(path, other):
    path.write_text(json.dumps({"format": 1, "model": "mine"}))


def not_an_object(path, other):
    path.write_text("[1, 2]")


def folder(path, other):
    path.unlink()
    path.mkdir()


DAMAGE = (flip, truncate, empty, remove, garble, not_ours, not_an_object, folder)


@pytest.mark.parametrize("name", NEEDED)
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("command", ["eval", "sample"])
def test_a_damaged_run_is_refused(refused, work, name, damage, command):
    damage(work / "lines" / name, work / "text")
    assert name.partition(".")[0] in refused(command, "lines")


@pytest.mark.parametrize("name", NEEDED)
def test_a_file_of_another_run_is_refused(refused, work, name):
    foreign(work / "lines" / name, work / "text")
    assert "belongs to another run" in refused("sample", "lines")


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.txt", "result.json"])
@pytest.mark.parametrize("damage", [flip, truncate, empty, remove, garble])
def test_sampling_needs_no_reports(work, name, damage):
    damage(work / "lines" / name, work / "text")
    assert call("sample", "lines").status == 0
    assert call("eval", "lines").status == 0


@pytest.mark.parametrize("damage", [flip, truncate, empty, garble, not_ours])
def test_comparing_needs_the_result(refused, work, damage):
    damage(work / "lines" / "result.json", work / "text")
    assert "result.json is damaged" in refused("compare", "lines")


def test_a_later_format_is_refused(refused, work):
    from makemore.runtime.files import read_json, write_json

    config = read_json(work / "lines" / "config.json")
    write_json(work / "lines" / "config.json", {**config, "format": 99})
    assert "has format 99; this version reads 1" in refused("sample", "lines")


class TestTheText:
    def test_gone(self, refused, work):
        (work / "own.txt").write_text((work / "words.txt").read_text())
        train("own.txt", "-m", "count", "--out", "own")
        (work / "own.txt").unlink()
        assert "is missing or is not a regular file" in refused("eval", "own")
        assert call("sample", "own").status == 0
        assert call("eval", "own", "words.txt", "--split", "val").status == 0

    def test_changed(self, refused, work):
        (work / "own.txt").write_text((work / "words.txt").read_text())
        train("own.txt", "-m", "count", "--out", "own")
        (work / "own.txt").write_text("dala\n" + (work / "words.txt").read_text())
        assert "has changed since own was trained" in refused("eval", "own")
        assert call("sample", "own").status == 0

    def test_a_byte_order_mark_or_other_line_ends_are_no_change(self, work):
        text = (work / "words.txt").read_text()
        (work / "own.txt").write_text(text)
        train("own.txt", "-m", "count", "--out", "own")
        before = call("eval", "own", "--json").out
        (work / "own.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
        assert call("eval", "own", "--json").out == before


class TestResuming:
    @pytest.fixture
    def run(self, work):
        train("words.txt", "-m", "bigram", "--steps", "3", "--out", "run")
        return work / "run"

    @pytest.mark.parametrize("name", ["state.json", "tensors.safetensors"])
    @pytest.mark.parametrize("damage", DAMAGE)
    def test_every_state_is_damaged(self, refused, run, name, damage):
        for state in (run / "state").iterdir():
            damage(state / name, run)
        resume = ["words.txt", "-m", "bigram", "--steps", "6", "--out", "run", "--resume"]
        assert "no state to resume from" in refused("train", *resume)

    @pytest.mark.parametrize("damage", DAMAGE)
    def test_the_newest_state_is_damaged(self, run, damage):
        resume = ["words.txt", "-m", "bigram", "--out", "run", "--resume"]
        train(*resume, "--steps", "6")
        states = sorted((run / "state").iterdir())
        assert len(states) == 2
        damage(states[-1] / "state.json", run)
        result = train(*resume, "--steps", "8")
        assert "falling back to the previous state" in result.err
        assert "resuming at step 3" in result.err

    def test_no_state_at_all(self, refused, run):
        shutil.rmtree(run / "state")
        resume = ["words.txt", "-m", "bigram", "--steps", "6", "--out", "run", "--resume"]
        assert "no state to resume from" in refused("train", *resume)

    def test_other_settings_are_refused(self, refused, run):
        resume = ["words.txt", "-m", "bigram", "--out", "run", "--resume"]
        assert "train.lr was" in refused("train", *resume, "--set", "train.lr=0.5")

    def test_more_steps_go_on(self, run):
        resume = ["words.txt", "-m", "bigram", "--out", "run", "--resume", "--json"]
        result = train(*resume, "--steps", "7")
        assert "resuming at step 3" in result.err
        assert json.loads(result.out)["steps"] == 7
