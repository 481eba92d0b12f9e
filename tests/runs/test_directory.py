"""Run directories: atomic writes, and detection of every damaged byte."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import torch

from makemore.errors import UserError
from makemore.runs import directory
from makemore.runs.directory import RunDir
from makemore.runs.schema import RunRecord, Seal, TextRecord
from makemore.runtime import files
from makemore.runtime.files import read_json, read_tensors, write_bytes, write_json, write_tensors
from makemore.settings import CorpusConfig


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


def tensors_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and torch.equal(a[k], b[k]) for k in a
    )


class TestJson:
    PAYLOAD = {"name": "œuf 👩‍🌾", "values": [1, 2.5, None, True], "nested": {"a": {"b": "\udc80"}}}

    def test_round_trip(self, tmp_path):
        write_json(tmp_path / "a.json", self.PAYLOAD)
        assert read_json(tmp_path / "a.json") == self.PAYLOAD

    def test_every_flipped_bit_is_detected(self, tmp_path):
        path = tmp_path / "a.json"
        write_json(path, self.PAYLOAD)
        data = path.read_bytes()
        for at in range(len(data)):
            for bit in (0x01, 0x20):
                path.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
                with pytest.raises(UserError, match="damaged"):
                    read_json(path)

    def test_every_truncation_is_detected(self, tmp_path):
        path = tmp_path / "a.json"
        write_json(path, self.PAYLOAD)
        data = path.read_bytes()
        for size in range(len(data)):
            path.write_bytes(data[:size])
            with pytest.raises(UserError, match="damaged"):
                read_json(path)

    @pytest.mark.parametrize("text", ["null", "3", "[]", '"sha256"', "{}", '{"sha256": 1}', "[" * 100000])
    def test_json_without_a_valid_checksum_is_refused(self, tmp_path, text):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(UserError, match="damaged"):
            read_json(tmp_path / "a.json")

    def test_missing_file(self, tmp_path):
        with pytest.raises(UserError, match=r"a.json is missing"):
            read_json(tmp_path / "a.json")


class TestTensors:
    def test_round_trip(self, tmp_path):
        write_tensors(tmp_path / "a", tensors(), "me")
        assert tensors_equal(read_tensors(tmp_path / "a", "me"), tensors())

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
        assert tensors_equal(read_tensors(tmp_path / "a", "me"), {k: v.detach() for k, v in shared.items()})

    def test_every_flipped_byte_is_detected(self, tmp_path):
        path = tmp_path / "a"
        write_tensors(path, tensors(), "me")
        data = path.read_bytes()
        n_missed = 0
        for at in range(len(data)):
            path.write_bytes(data[:at] + bytes([data[at] ^ 0x01]) + data[at + 1 :])
            try:
                assert tensors_equal(read_tensors(path, "me"), tensors()), at
                n_missed += 1
            except UserError:
                pass
        assert n_missed == 0

    def test_every_truncation_is_detected(self, tmp_path):
        path = tmp_path / "a"
        write_tensors(path, tensors(), "me")
        data = path.read_bytes()
        for size in range(0, len(data), 7):
            path.write_bytes(data[:size])
            with pytest.raises(UserError, match="damaged"):
                read_tensors(path, "me")

    def test_tensors_of_another_run_are_refused(self, tmp_path):
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

    def test_missing_file(self, tmp_path):
        with pytest.raises(UserError, match="missing"):
            read_tensors(tmp_path / "a", "me")


class TestWriting:
    def test_failed_write_keeps_the_old_file(self, tmp_path, monkeypatch):
        write_bytes(tmp_path / "a", b"old")

        def disk_full(handle):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(files.os, "fsync", disk_full)
        with pytest.raises(UserError, match=r"can't write .*: No space left on device"):
            write_bytes(tmp_path / "a", b"new")
        assert (tmp_path / "a").read_bytes() == b"old"
        assert [p.name for p in tmp_path.iterdir()] == ["a"]

    def test_parent_that_is_a_file_is_refused(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="can't write"):
            write_bytes(tmp_path / "file" / "a", b"new")


@pytest.fixture
def run_dir(tmp_path):
    return RunDir(tmp_path / "run")


CONFIG = RunRecord.for_model("bigram")(
    text=TextRecord(
        paths=("words.txt",), digests={"train": "a", "val": "b", "test": "c"}, longest_document=3, context=""
    ),
    corpus=CorpusConfig(mode="lines"),
)


def fill(run_dir: RunDir) -> str:
    run_id = run_dir.create(CONFIG, {"name": "char", "alphabet": "ab"})
    run_dir.write_model({"a": torch.ones(2)}, run_id)
    run_dir.metrics.append({"step": 1})
    return run_id


class TestRunDir:
    def test_config_and_tokenizer_round_trip(self, run_dir):
        run_id = fill(run_dir)
        assert run_dir.read_config().model == CONFIG.model
        assert run_dir.read_config().run_id == run_id
        assert run_dir.read_tokenizer(run_id)["alphabet"] == "ab"
        assert run_dir.read_result() is None

    def test_is_occupied(self, run_dir, tmp_path):
        assert not run_dir.is_occupied
        run_dir.path.mkdir()
        assert not run_dir.is_occupied
        (run_dir.path / "x").write_text("")
        assert run_dir.is_occupied
        (tmp_path / "file").write_text("")
        assert RunDir(tmp_path / "file").is_occupied
        (tmp_path / "nowhere").symlink_to(tmp_path / "none")
        assert RunDir(tmp_path / "nowhere").is_occupied
        assert not RunDir(tmp_path / ("x" * 5000)).is_occupied

    def test_clear_deletes_only_the_files_of_the_run(self, run_dir):
        run_id = fill(run_dir)
        run_dir.write_state(1, {}, run_id)
        (run_dir.path / "notes.txt").write_text("mine")
        run_dir.clear()
        assert [p.name for p in run_dir.path.iterdir()] == ["notes.txt"]

    @pytest.mark.parametrize("text", ["", "{}", '{"run_id": "x"}', '{"run_id": "x", "sha256": "y"}'])
    def test_clear_refuses_a_directory_that_is_not_a_run(self, run_dir, text):
        run_dir.path.mkdir()
        (run_dir.path / "config.json").write_text(text)
        with pytest.raises(UserError, match="is not overwritten"):
            run_dir.clear()
        assert (run_dir.path / "config.json").read_text() == text

    def test_clear_follows_a_symlink(self, run_dir, tmp_path):
        fill(run_dir)
        (tmp_path / "link").symlink_to(run_dir.path)
        RunDir(tmp_path / "link").clear()
        assert list(run_dir.path.iterdir()) == []

    def test_half_created_run_is_not_occupied(self, run_dir):
        run_dir.path.mkdir()
        (run_dir.path / ".tokenizer.json.12.tmp").write_text("{")
        assert not run_dir.is_occupied
        directory.write_json(run_dir.path / "tokenizer.json", {"run_id": "x"})
        (run_dir.path / "state" / "000000000").mkdir(parents=True)
        assert not run_dir.is_occupied
        run_dir.clear()
        assert list(run_dir.path.iterdir()) == []

    def test_only_one_process_holds_the_lock(self, run_dir):
        with (
            run_dir.locked(),
            pytest.raises(UserError, match="another process is writing"),
            RunDir(run_dir.path).locked(),
        ):
            pass
        with RunDir(run_dir.path).locked():
            pass
        assert list(run_dir.path.iterdir()) == []

    def test_damaged_files_are_restored_from_a_state(self, run_dir):
        run_id = fill(run_dir)
        run_dir.write_state(1, {"step": 1}, run_id)
        assert run_dir.restore_from_states() == []
        (run_dir.path / "config.json").write_text("?")
        (run_dir.path / "tokenizer.json").unlink()
        other = RunDir(run_dir.path)
        assert [("config.json" in p, "tokenizer.json" in p) for p in other.restore_from_states()] == [
            (1, 0),
            (0, 1),
        ]
        assert other.read_config().model == CONFIG.model
        assert other.read_tokenizer(run_id)["alphabet"] == "ab"

    def test_interrupted_clear_can_be_repeated(self, run_dir, monkeypatch):
        fill(run_dir)
        unlink = directory.Path.unlink

        def interrupted_unlink(path, missing_ok=False):
            if path.name == "tokenizer.json":
                raise KeyboardInterrupt
            unlink(path, missing_ok)

        with monkeypatch.context() as patch:
            patch.setattr(directory.Path, "unlink", interrupted_unlink)
            with pytest.raises(KeyboardInterrupt):
                run_dir.clear()
        run_dir.clear()
        assert not run_dir.is_occupied


class TestMetrics:
    def test_truncated_lines_are_skipped(self, run_dir):
        fill(run_dir)
        run_dir.metrics.append({"step": 2})
        with (run_dir.path / "metrics.jsonl").open("a") as file:
            file.write('[1]\n{"step": 3')
        assert run_dir.metrics.read() == [{"step": 1}, {"step": 2}]

    def test_truncate_after_a_step(self, run_dir):
        fill(run_dir)
        for step in (2, 3, 4):
            run_dir.metrics.append({"step": step})
        assert (
            run_dir.metrics.truncate(2, Seal(bytes=0, sha256="?")) != ""
        )  # cuts by step where the checksum is wrong
        assert run_dir.metrics.read() == [{"step": 1}, {"step": 2}]
        run_dir.metrics.append({"step": 3})
        lines = (run_dir.path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


class TestStates:
    STATE = {
        "step": 3,
        "optimizer": {0: {"m": torch.arange(3.0)}, 1: {"m": torch.ones(2)}},
        "list": [torch.ones(1), "x"],
        "none": None,
    }

    def test_round_trip(self, run_dir):
        run_id = fill(run_dir)
        run_dir.write_state(3, self.STATE, run_id)
        state, _, problems = run_dir.states.read_newest(run_id)
        assert problems == []
        assert list(state["optimizer"]) == [0, 1]
        assert torch.equal(state["optimizer"][0]["m"], torch.arange(3.0))
        assert torch.equal(state["list"][0], torch.ones(1))
        assert (state["list"][1], state["none"], state["step"]) == ("x", None, 3)

    def test_last_two_states_are_kept(self, run_dir):
        run_id = fill(run_dir)
        for step in (9, 10, 100):
            run_dir.write_state(step, {"step": step}, run_id)
        assert sorted(p.name for p in (run_dir.path / "state").iterdir()) == ["000000010", "000000100"]
        assert run_dir.states.read_newest(run_id)[0] == {"step": 100}

    def test_incomplete_state_is_skipped(self, run_dir):
        run_id = fill(run_dir)
        run_dir.write_state(1, {"step": 1}, run_id)
        run_dir.write_state(2, {"step": 2, "t": torch.ones(3)}, run_id)
        (run_dir.path / "state" / "000000002" / "state.json").unlink()
        state, _, problems = run_dir.states.read_newest(run_id)
        assert state == {"step": 1}
        assert len(problems) == 1

    def test_states_of_the_same_step_get_a_suffix(self, run_dir):
        run_id = fill(run_dir)
        for value in (1, 2, 3):
            run_dir.write_state(7, {"value": value}, run_id)
        assert sorted(p.name for p in (run_dir.path / "state").iterdir()) == ["000000007.1", "000000007.2"]
        assert run_dir.states.read_newest(run_id).state == {"value": 3}

    def test_valid_state_is_kept_instead_of_a_newer_damaged_one(self, run_dir):
        run_id = fill(run_dir)
        for step in (10, 20):
            run_dir.write_state(step, {"step": step}, run_id)
        (run_dir.path / "state" / "000000020" / "state.json").write_text("?")
        later = RunDir(run_dir.path)
        assert later.states.read_newest(run_id).state == {"step": 10}
        later.write_state(15, {"step": 15}, run_id)
        assert sorted(p.name for p in (run_dir.path / "state").iterdir()) == ["000000010", "000000015"]

    def test_files_from_another_state_are_detected(self, run_dir):
        run_id = fill(run_dir)
        for step in (1, 2):
            run_dir.write_state(step, {"t": torch.full((3,), step)}, run_id)
        old, new = (run_dir.path / "state" / f"00000000{step}" for step in (1, 2))
        for name in ("tensors.safetensors", "state.json"):
            original = (new / name).read_bytes()
            (new / name).write_bytes((old / name).read_bytes())
            assert f"{name} is damaged" in run_dir.states.read_newest(run_id).problems[0]
            (new / name).write_bytes(original)

    def test_failed_write_keeps_the_previous_state(self, run_dir, monkeypatch):
        run_id = fill(run_dir)
        run_dir.write_state(1, {"step": 1}, run_id)

        def disk_full(path, payload):
            raise UserError("can't write: No space left on device")

        monkeypatch.setattr("makemore.runs.states.write_json", disk_full)
        with pytest.raises(UserError, match="No space left"):
            run_dir.write_state(2, {"step": 2, "t": torch.ones(3)}, run_id)
        assert [p.name for p in (run_dir.path / "state").iterdir()] == ["000000001"]

    def test_state_of_another_run_is_refused(self, run_dir):
        run_id = fill(run_dir)
        run_dir.write_state(1, {"step": 1}, "other")
        with pytest.raises(UserError, match=r"no state to resume from .*another run"):
            run_dir.states.read_newest(run_id)

    def test_no_state(self, run_dir):
        with pytest.raises(UserError, match="no state to resume from"):
            run_dir.states.read_newest(fill(run_dir))
