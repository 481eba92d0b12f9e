"""Untrusted run directories: no code is executed, no file outside is touched, no memory is allocated before
sizes are checked, and errors take one line."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import shutil
import socket
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from makemore.runs.directory import RunDir
from makemore.runtime import files
from makemore.runtime.files import read_json, write_json
from tests.cli.conftest import Result, call, listing
from tests.reliability.corruption import make_runs
from tests.reliability.fuzzing import WRONG_VALUES, json_paths, replace_value

pytestmark = pytest.mark.slow

COMMANDS = {
    "sample": ["sample", "run", "-n", "2", "--max-new-tokens", "8", "--seed", "1"],
    "eval": ["eval", "run", "words.txt"],
    "check": ["check", "run"],
    "resume": ["train", "words.txt", "--out", "run", "--resume"],
    "compare": ["compare", "run", "run"],
}
JSON_FILES = ("config.json", "tokenizer.json", "result.json", "state/000000008/state.json")
TENSOR_FILES = ("model.safetensors", "state/000000008/tensors.safetensors")


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    make_runs(folder)
    shutil.copy(folder / "finished" / "result.json", folder / "stopped")
    return folder


@pytest.fixture
def work(originals, tmp_path, monkeypatch) -> Path:
    """The current folder: a text, ``run`` (stopped at step 8), and files outside the run."""
    copy_originals(originals, tmp_path)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "000000001").mkdir()
    (tmp_path / "outside" / "precious.txt").write_text("precious\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def copy_originals(originals: Path, folder: Path) -> None:
    shutil.rmtree(folder / "run", ignore_errors=True)
    shutil.copytree(originals / "stopped", folder / "run")
    shutil.copy(originals / "words.txt", folder)


def assert_handled(result: Result) -> None:
    """The command succeeded, or failed with one line and exit status 2."""
    assert "Traceback" not in result.err
    assert result.status in (0, 2), result
    if result.status == 2:
        assert sum(line.startswith("makemore: ") for line in result.err.splitlines()) == 1, result.err


def refused(name: str) -> str:
    result = call(*COMMANDS[name])
    assert_handled(result)
    assert result.status == 2, result
    return result.err


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


@pytest.mark.parametrize("name", [*JSON_FILES, *TENSOR_FILES, "metrics.jsonl"])
@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_pickles_are_never_loaded(work, name, writer):
    path = work / "run" / name
    path.write_bytes(pickle.dumps(Bomb())) if writer == "pickle" else torch.save({"a": Bomb()}, path)
    assert str(Path("run") / name) in refused("check")
    for command in COMMANDS:
        assert_handled(call(*COMMANDS[command]))
    assert not (work / "executed").exists()


def test_no_module_unpickles():
    """No module unpickles, directly or through torch or numpy, except for ``makemore import``.

    ``makemore import`` reads checkpoints with ``weights_only``, where torch calls nothing that a file names.
    """
    folder = Path(files.__file__).parents[1]
    for path in folder.rglob("*.py"):
        code = path.read_text(encoding="utf-8")
        if path == folder / "interop" / "checkpoint_file.py":
            assert re.findall(r"torch\.load\(.*", code) == [
                'torch.load(path, map_location="cpu", weights_only=True)'
            ]
            assert set(re.findall(r"\bpickle\.\w+", code)) == {"pickle.UnpicklingError"}
            continue
        assert not re.search(r"import pickle\b|torch\.load\(|allow_pickle|joblib", code)


def write_tensor_file(path: Path, size: int, text: bytes, length: int) -> None:
    """Write a tensor file that claims a header of ``size`` bytes; it is sparse up to ``length``."""
    path.write_bytes(struct.pack("<Q", size) + text)
    os.truncate(path, length)


TENSOR = b'{"x":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}'
HOLE = 1 << 42  # 4 TB, as a sparse file


@pytest.mark.parametrize("name", TENSOR_FILES)
@pytest.mark.parametrize(
    ("size", "text", "length"),
    [
        (1 << 63, b"{}", 100),
        (99_000_000, b"{", 100_000_000),
        (len(TENSOR % (HOLE, HOLE)), TENSOR % (HOLE, HOLE), 1000),
        (len(TENSOR % (HOLE, HOLE)), TENSOR % (HOLE, HOLE), HOLE + 8 + len(TENSOR % (HOLE, HOLE))),
        (0, b"", 8),
        (4, b"", 4),
    ],
    ids=["endless header", "giant header", "missing data", "sparse data", "no header", "truncated"],
)
def test_tensor_files_with_false_sizes_are_refused(work, name, size, text, length):
    write_tensor_file(work / "run" / name, size, text, length)
    assert name in refused("check")
    assert_handled(call(*COMMANDS["sample"]))
    assert_handled(call(*COMMANDS["resume"]))


@pytest.mark.parametrize("name", JSON_FILES)
def test_huge_json_files_are_refused(work, name):
    os.truncate(work / "run" / name, HOLE)
    assert "exceed the limit" in refused("check")
    for command in COMMANDS:
        assert_handled(call(*COMMANDS[command]))


def rewrite(work: Path, change: Any, name: str = "config.json") -> None:
    """Change a JSON file of the run and update its checksum."""
    path = work / "run" / name
    payload = read_json(path)
    change(payload)
    write_json(path, payload)


SIZES = {
    "n_layer": 10**9,
    "n_embd": 10**9,
    "n_embd and n_head": 2**40,
    "n_head": 2**62,
    "block_size": 10**12,
    "block_size beyond 64 bits": 10**40,
    "conv": 10**9,
    "vocab_size": 10**12,
}


@pytest.mark.parametrize("setting", SIZES)
def test_huge_model_sizes_are_refused(work, setting):
    changes = dict.fromkeys(setting.partition(" beyond")[0].split(" and "), SIZES[setting])

    def change(payload):
        payload["model"].update(changes)

    rewrite(work, change)
    for state in (work / "run" / "state").iterdir():

        def change_state(payload):
            pairs = dict(payload["state"]["$dict"])["settings"]["$dict"]
            pairs[:] = [[k, v] for k, v in pairs if k not in changes] + [[k, v] for k, v in changes.items()]

        rewrite(work, change_state, f"state/{state.name}/state.json")
    for command in ("sample", "eval", "resume"):
        result = call(*COMMANDS[command])
        assert_handled(result)
        assert result.status == 2 or setting.startswith("block_size")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([["bigram", {}]] * 100_000, "fit in memory"),
        ([["../../evil", {}]], "unknown model"),
        ([["mixture", {"members": '[["mixture", {}]]'}]], ""),
        ([["count", {"order": 10**9}]], "order"),
        ([["wavenet", {"block_size": 2**50}]], ""),
    ],
)
def test_invalid_mixtures_are_refused(work, members, message):
    def change(payload):
        configs = [{"name": name, **settings} for name, settings in members]
        payload["model"] = {"name": "mixture", "members": configs}

    rewrite(work, change)
    assert message in refused("sample")


LINK_TARGETS = ("../outside/precious.txt", "/dev/zero", "/dev/stdin", "../run", "nowhere")


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX links")
@pytest.mark.parametrize("target", LINK_TARGETS)
@pytest.mark.parametrize("name", [*JSON_FILES, *TENSOR_FILES, "metrics.jsonl", "samples.txt"])
def test_links_are_not_followed(work, name, target):
    path = work / "run" / name
    path.unlink(missing_ok=True)
    path.symlink_to(target)
    outside = listing(work / "outside")
    for command in ("check", "sample", "resume"):
        assert_handled(call(*COMMANDS[command]))
    assert listing(work / "outside") == outside


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX links")
@pytest.mark.parametrize("name", ["state", "state/000000008"])
def test_linked_folders_are_not_followed(work, name):
    path = work / "run" / name
    shutil.rmtree(path)
    path.symlink_to(work / "outside")
    outside = listing(work / "outside")
    assert "is a link" in refused("resume")
    assert "is a link" in refused("check")
    assert_handled(call("train", "words.txt", "-m", "count", "--out", "run", "--overwrite"))
    assert listing(work / "outside") == outside


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX pipes")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "metrics.jsonl"])
def test_named_pipes_do_not_block(work, name):
    (work / "run" / name).unlink()
    os.mkfifo(work / "run" / name)
    for command in COMMANDS:
        assert_handled(call(*COMMANDS[command]))


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX links")
def test_a_temporary_file_that_is_a_link_is_not_written_through(work):
    (work / f".new.json.{os.getpid()}.tmp").symlink_to(work / "outside" / "precious.txt")
    write_json(work / "new.json", {})
    assert (work / "outside" / "precious.txt").read_text() == "precious\n"
    assert read_json(work / "new.json") == {}


@pytest.mark.parametrize(
    "path", ["../outside/precious.txt", "/dev/zero", "/etc/passwd", "", "\0", "x" * 5000]
)
def test_changed_text_path_is_refused(work, path):
    """The path may be anything; the file is compared with the run's checksums before it is used."""

    def change(payload):
        payload["text"]["paths"] = [path]

    rewrite(work, change)
    result = call("eval", "run")
    assert_handled(result)
    assert result.status == 2


REFERENCES = {
    "version": 1,
    "templates": {"x": "{{ cycler.__init__.__globals__.os.mkdir('executed') }}"},
    "refs": {"text": ["{{ x }}", 0, 1]},
    "gen": [
        {
            "key": "k{{i}}",
            "url": "{{ cycler.__init__.__globals__.os.mkdir('executed') }}",
            "dimensions": {"i": [1]},
        }
    ],
}


@pytest.mark.parametrize(
    "path",
    [
        "reference://text::file://refs.json",
        "filecache::http://127.0.0.1:{port}/a.txt",
        "http://127.0.0.1:{port}/a.txt",
        "memory://a.txt",
        "pipe",
        "-",
    ],
)
@pytest.mark.parametrize("command", [["eval", "run"], ["inspect", "run"], ["sample", "run", "--report"]])
def test_urls_and_pipes_in_a_config_are_never_opened(work, monkeypatch, path, command):
    """No URL is fetched, no template is rendered, no named pipe is waited for."""
    (work / "refs.json").write_text(json.dumps(REFERENCES))
    os.mkfifo(work / "pipe")
    opened = []
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **kwargs: opened.append(args))
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        path = path.format(port=server.getsockname()[1])

        def change(payload):
            payload["text"]["paths"] = [path]

        rewrite(work, change)
        result = call(*command)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert_handled(result)
    assert result.status == (2 if command[0] == "eval" else 0)  # the others don't need the text
    assert not opened
    assert not (work / "executed").exists()


def write_wrong_value(folder: Path, rng: random.Random) -> tuple[str, tuple, Any]:
    """Put a wrong value at a random place of a JSON file and update its checksum."""
    name = rng.choice(JSON_FILES)
    payload = read_json(folder / "run" / name)
    path = rng.choice(json_paths(payload)[1:])
    new = rng.choice(WRONG_VALUES)
    replace_value(payload, path, new)
    write_json(folder / "run" / name, payload)
    return name, path, new


def test_wrong_values_are_refused_or_harmless(work, originals):
    rng = random.Random(0)
    for _ in range(60):
        copy_originals(originals, work)
        change = write_wrong_value(work, rng)
        for command in rng.sample(sorted(COMMANDS), 2):
            result = call(*COMMANDS[command])
            assert "Traceback" not in result.err, (change, command, result)
            assert_handled(result)
    assert (work / "outside" / "precious.txt").read_text() == "precious\n"


def test_wrong_tensors_are_refused(work):
    """Valid checksums, invalid shapes and types."""
    run_id = RunDir(work / "run").read_config().run_id
    for tensors in ({}, {"x": torch.ones(3)}, {"head.weight": torch.ones(1, dtype=torch.bool)}):
        RunDir(work / "run").write_model(tensors, run_id)
        assert "run is damaged or from another version" in refused("sample")


def test_escape_sequences_are_not_printed(work):
    """Untrusted strings can't move the cursor or change colours."""

    def change(payload):
        payload["model"]["name"] = "\x1b[2J\x1b]0;owned\x07"

    rewrite(work, change)
    assert "\x1b" not in refused("sample")
    assert sys.stdout is not None
