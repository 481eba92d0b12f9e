"""Run directories: whole or not at all, and no damage goes unnoticed."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import torch

from makemore.errors import UserError
from makemore.runs import directory as checkpoint
from makemore.runs.directory import RunDir
from makemore.runtime import files
from makemore.runtime.files import read_json, read_tensors, write_bytes, write_json, write_tensors


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "weight": torch.randn(3, 4, generator=generator),
        "half": torch.randn(5, generator=generator).to(torch.bfloat16),
        "count": torch.arange(6).reshape(2, 3),
        "flag": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "none": torch.zeros(0, 3),
    }


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and torch.equal(a[k], b[k]) for k in a
    )


class TestJson:
    PAYLOAD = {"name": "œuf 👩‍🌾", "values": [1, 2.5, None, True], "nested": {"a": {"b": "\udc80"}}}

    def test_comes_back(self, tmp_path):
        write_json(tmp_path / "a.json", self.PAYLOAD)
        assert read_json(tmp_path / "a.json") == self.PAYLOAD

    def test_every_flipped_bit_is_noticed(self, tmp_path):
        path = tmp_path / "a.json"
        write_json(path, self.PAYLOAD)
        data = path.read_bytes()
        for at in range(len(data)):
            for bit in (0x01, 0x20):
                path.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
                with pytest.raises(UserError, match="damaged"):
                    read_json(path)

    def test_every_cut_is_noticed(self, tmp_path):
        path = tmp_path / "a.json"
        write_json(path, self.PAYLOAD)
        data = path.read_bytes()
        for size in range(len(data)):
            path.write_bytes(data[:size])
            with pytest.raises(UserError, match="damaged"):
                read_json(path)

    @pytest.mark.parametrize("text", ["null", "3", "[]", '"sha256"', "{}", '{"sha256": 1}', "[" * 100000])
    def test_other_json_is_not_ours(self, tmp_path, text):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(UserError, match="damaged"):
            read_json(tmp_path / "a.json")

    def test_missing(self, tmp_path):
        with pytest.raises(UserError, match=r"a.json is missing"):
            read_json(tmp_path / "a.json")


class TestTensors:
    def test_come_back(self, tmp_path):
        write_tensors(tmp_path / "a", tensors(), "me")
        assert same(read_tensors(tmp_path / "a", "me"), tensors())

    def test_shared_and_strided_memory(self, tmp_path):
        base = torch.arange(12.0).reshape(3, 4)
        shared = {
            "a": base,
            "b": base,
            "transposed": base.T,
            "row": base[1],
            "grad": base.clone().requires_grad_(),
        }
        write_tensors(tmp_path / "a", shared, "me")
        assert same(read_tensors(tmp_path / "a", "me"), {k: v.detach() for k, v in shared.items()})

    def test_every_flipped_byte_is_noticed(self, tmp_path):
        path = tmp_path / "a"
        write_tensors(path, tensors(), "me")
        data = path.read_bytes()
        missed = 0
        for at in range(len(data)):
            path.write_bytes(data[:at] + bytes([data[at] ^ 0x01]) + data[at + 1 :])
            try:
                assert same(read_tensors(path, "me"), tensors()), at
                missed += 1
            except UserError:
                pass
        assert missed == 0

    def test_every_cut_is_noticed(self, tmp_path):
        path = tmp_path / "a"
        write_tensors(path, tensors(), "me")
        data = path.read_bytes()
        for size in range(0, len(data), 7):
            path.write_bytes(data[:size])
            with pytest.raises(UserError, match="damaged"):
                read_tensors(path, "me")

    def test_another_run_s_are_refused(self, tmp_path):
        write_tensors(tmp_path / "a", tensors(), "you")
        with pytest.raises(UserError, match="belongs to another run"):
            read_tensors(tmp_path / "a", "me")

    def test_nothing_is_unpickled(self, tmp_path):
        class Trap:
            def __reduce__(self):
                return (os.mkdir, (str(tmp_path / "sprung"),))

        (tmp_path / "a").write_bytes(pickle.dumps(Trap()))
        torch.save({"a": Trap()}, tmp_path / "b")
        for name in ("a", "b"):
            with pytest.raises(UserError, match="damaged"):
                read_tensors(tmp_path / name, "me")
        assert not (tmp_path / "sprung").exists()

    def test_missing(self, tmp_path):
        with pytest.raises(UserError, match="missing"):
            read_tensors(tmp_path / "a", "me")


class TestWriting:
    def test_a_write_that_fails_leaves_what_was(self, tmp_path, monkeypatch):
        write_bytes(tmp_path / "a", b"old")

        def full(handle):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(files.os, "fsync", full)
        with pytest.raises(UserError, match=r"can't write .*: No space left on device"):
            write_bytes(tmp_path / "a", b"new")
        assert (tmp_path / "a").read_bytes() == b"old"
        assert [p.name for p in tmp_path.iterdir()] == ["a"]

    def test_a_folder_that_is_a_file(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="can't write"):
            write_bytes(tmp_path / "file" / "a", b"new")


@pytest.fixture
def folder(tmp_path):
    return RunDir(tmp_path / "run")


CONFIG = {
    "model": {"name": "count", "settings": {}},
    "tokenizer": "char",
    "corpus": {
        "paths": ["words.txt"],
        "mode": "lines",
        "split": "auto",
        "dedupe": False,
        "encoding": "utf-8",
        "digests": {"train": "a", "val": "b", "test": "c"},
        "longest_document": 3,
        "context": "",
    },
}


def filled(folder: RunDir) -> str:
    run_id = folder.create(CONFIG, {"name": "char", "alphabet": "ab"})
    folder.write_model({"a": torch.ones(2)}, run_id)
    folder.append_metrics({"step": 1})
    return run_id


class TestRunDir:
    def test_config_and_tokenizer_come_back(self, folder):
        run_id = filled(folder)
        assert folder.read_config()["model"] == CONFIG["model"]
        assert folder.read_config()["run_id"] == run_id
        assert folder.read_tokenizer(run_id)["alphabet"] == "ab"
        assert folder.read_result() is None

    def test_occupied(self, folder, tmp_path):
        assert not folder.is_occupied
        folder.path.mkdir()
        assert not folder.is_occupied
        (folder.path / "x").write_text("")
        assert folder.is_occupied
        (tmp_path / "file").write_text("")
        assert RunDir(tmp_path / "file").is_occupied
        (tmp_path / "nowhere").symlink_to(tmp_path / "none")
        assert RunDir(tmp_path / "nowhere").is_occupied
        assert not RunDir(tmp_path / ("x" * 5000)).is_occupied

    def test_clearing_takes_a_run_and_nothing_else(self, folder):
        run_id = filled(folder)
        folder.write_state(1, {}, run_id)
        (folder.path / "notes.txt").write_text("mine")
        folder.clear()
        assert [p.name for p in folder.path.iterdir()] == ["notes.txt"]

    @pytest.mark.parametrize("text", ["", "{}", '{"run_id": "x"}', '{"run_id": "x", "sha256": "y"}'])
    def test_clearing_leaves_what_is_no_run(self, folder, text):
        folder.path.mkdir()
        (folder.path / "config.json").write_text(text)
        with pytest.raises(UserError, match="won't overwrite"):
            folder.clear()
        assert (folder.path / "config.json").read_text() == text

    def test_clearing_through_a_link(self, folder, tmp_path):
        filled(folder)
        (tmp_path / "link").symlink_to(folder.path)
        RunDir(tmp_path / "link").clear()
        assert list(folder.path.iterdir()) == []

    def test_one_cut_short_while_it_was_made_is_not_in_the_way(self, folder):
        folder.path.mkdir()
        (folder.path / ".tokenizer.json.12.tmp").write_text("{")
        assert not folder.is_occupied
        checkpoint.write_json(folder.path / "tokenizer.json", {"run_id": "x"})
        (folder.path / "state" / "000000000").mkdir(parents=True)
        assert not folder.is_occupied
        folder.clear()
        assert list(folder.path.iterdir()) == []

    def test_one_writer_at_a_time(self, folder):
        with (
            folder.locked(),
            pytest.raises(UserError, match="another process is writing"),
            RunDir(folder.path).locked(),
        ):
            pass
        with RunDir(folder.path).locked():
            pass
        assert list(folder.path.iterdir()) == []

    def test_what_is_damaged_is_taken_from_a_state(self, folder):
        run_id = filled(folder)
        folder.write_state(1, {"step": 1}, run_id)
        assert folder.restore_from_states() == []
        (folder.path / "config.json").write_text("?")
        (folder.path / "tokenizer.json").unlink()
        other = RunDir(folder.path)
        assert [("config.json" in p, "tokenizer.json" in p) for p in other.restore_from_states()] == [
            (1, 0),
            (0, 1),
        ]
        assert other.read_config()["model"] == CONFIG["model"]
        assert other.read_tokenizer(run_id)["alphabet"] == "ab"

    def test_clearing_again_after_being_cut_short(self, folder, monkeypatch):
        filled(folder)
        unlink = checkpoint.Path.unlink

        def cut_short(path, missing_ok=False):
            if path.name == "tokenizer.json":
                raise KeyboardInterrupt
            unlink(path, missing_ok)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.Path, "unlink", cut_short)
            with pytest.raises(KeyboardInterrupt):
                folder.clear()
        folder.clear()
        assert not folder.is_occupied


class TestMetrics:
    def test_a_line_cut_off_is_passed_over(self, folder):
        filled(folder)
        folder.append_metrics({"step": 2})
        with (folder.path / "metrics.jsonl").open("a") as file:
            file.write('[1]\n{"step": 3')
        assert folder.read_metrics() == [{"step": 1}, {"step": 2}]

    def test_are_cut_at_a_step(self, folder):
        filled(folder)
        for step in (2, 3, 4):
            folder.append_metrics({"step": step})
        assert (
            folder.truncate_metrics(2, {"bytes": 0, "sha256": "?"}) != ""
        )  # by step where the seal is broken
        assert folder.read_metrics() == [{"step": 1}, {"step": 2}]
        folder.append_metrics({"step": 3})
        lines = (folder.path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


class TestStates:
    STATE = {
        "step": 3,
        "optimizer": {0: {"m": torch.arange(3.0)}, 1: {"m": torch.ones(2)}},
        "list": [torch.ones(1), "x"],
        "none": None,
    }

    def test_come_back(self, folder):
        run_id = filled(folder)
        folder.write_state(3, self.STATE, run_id)
        state, _, problems = folder.read_state(run_id)
        assert problems == []
        assert list(state["optimizer"]) == [0, 1]
        assert torch.equal(state["optimizer"][0]["m"], torch.arange(3.0))
        assert torch.equal(state["list"][0], torch.ones(1))
        assert (state["list"][1], state["none"], state["step"]) == ("x", None, 3)

    def test_the_last_two_are_kept(self, folder):
        run_id = filled(folder)
        for step in (9, 10, 100):
            folder.write_state(step, {"step": step}, run_id)
        assert sorted(p.name for p in (folder.path / "state").iterdir()) == ["000000010", "000000100"]
        assert folder.read_state(run_id)[0] == {"step": 100}

    def test_an_unfinished_one_is_passed_over(self, folder):
        run_id = filled(folder)
        folder.write_state(1, {"step": 1}, run_id)
        folder.write_state(2, {"step": 2, "t": torch.ones(3)}, run_id)
        (folder.path / "state" / "000000002" / "state.json").unlink()
        state, _, problems = folder.read_state(run_id)
        assert state == {"step": 1}
        assert len(problems) == 1

    def test_one_of_the_same_step_stands_beside_it(self, folder):
        run_id = filled(folder)
        for value in (1, 2, 3):
            folder.write_state(7, {"value": value}, run_id)
        assert sorted(p.name for p in (folder.path / "state").iterdir()) == ["000000007.1", "000000007.2"]
        assert folder.read_state(run_id).state == {"value": 3}

    def test_the_good_one_before_is_kept_not_the_damaged_one(self, folder):
        run_id = filled(folder)
        for step in (10, 20):
            folder.write_state(step, {"step": step}, run_id)
        (folder.path / "state" / "000000020" / "state.json").write_text("?")
        later = RunDir(folder.path)
        assert later.read_state(run_id).state == {"step": 10}
        later.write_state(15, {"step": 15}, run_id)
        assert sorted(p.name for p in (folder.path / "state").iterdir()) == ["000000010", "000000015"]

    def test_one_that_is_in_another_s_place(self, folder):
        run_id = filled(folder)
        for step in (1, 2):
            folder.write_state(step, {"t": torch.full((3,), step)}, run_id)
        old, new = (folder.path / "state" / f"00000000{step}" for step in (1, 2))
        for name in ("tensors.safetensors", "state.json"):
            kept = (new / name).read_bytes()
            (new / name).write_bytes((old / name).read_bytes())
            assert f"{name} is damaged" in folder.read_state(run_id).problems[0]
            (new / name).write_bytes(kept)

    def test_a_write_that_fails_leaves_the_one_before(self, folder, monkeypatch):
        run_id = filled(folder)
        folder.write_state(1, {"step": 1}, run_id)

        def full(path, payload):
            raise UserError("can't write: No space left on device")

        monkeypatch.setattr(checkpoint, "write_json", full)
        with pytest.raises(UserError, match="No space left"):
            folder.write_state(2, {"step": 2, "t": torch.ones(3)}, run_id)
        assert [p.name for p in (folder.path / "state").iterdir()] == ["000000001"]

    def test_another_run_s_are_refused(self, folder):
        run_id = filled(folder)
        folder.write_state(1, {"step": 1}, "other")
        with pytest.raises(UserError, match=r"no state to resume from .*another run"):
            folder.read_state(run_id)

    def test_none(self, folder):
        with pytest.raises(UserError, match="no state to resume from"):
            folder.read_state(filled(folder))
