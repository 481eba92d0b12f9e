"""Full disks, read-only folders, failing outputs, jumping clocks, concurrent processes: errors take one clear
line, no file is half-written, and the earlier state stays intact."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from makemore.runs.directory import RunDir
from makemore.runs.verification import check_run
from makemore.runtime import files
from tests.cli.conftest import Result, call, listing, words
from tests.reliability.kills import SETTINGS
from tests.reliability.test_resuming import same, state_of

pytestmark = pytest.mark.slow

POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX devices and permissions")
BASE_FLAGS = ["--mode", "lines", "--device", "cpu", "--dtype", "float32", "--no-compile", "--steps", "12"]
FLAGS = [*BASE_FLAGS, *(part for setting in SETTINGS for part in ("--set", setting))]


@pytest.fixture
def text(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text(words(60), encoding="utf-8")
    return tmp_path / "words.txt"


def train(text: Path, out: Path | str, *arguments: str) -> Result:
    return call("train", text, "--out", out, *(arguments or FLAGS))


def assert_error(result: Result, message: str) -> None:
    assert result.status == 2, result
    assert "Traceback" not in result.err
    lines = [line for line in result.err.splitlines() if line.startswith("makemore: ")]
    assert len(lines) == 1, result.err
    assert message in lines[0]


def assert_resumes(text: Path, out: Path, tmp_path: Path) -> None:
    """The run has no leftover files and resumes to the final state of an undisturbed run."""
    assert not list(out.rglob("*.tmp"))
    assert train(text, out, "--resume").status == 0
    assert train(text, tmp_path / "reference").status == 0
    assert same(state_of(out), state_of(tmp_path / "reference"))
    assert check_run(out) == []


class TestFullDisk:
    @pytest.mark.parametrize("nth", [1, 2, 5, 9, 14, 20])
    def test_disk_full_at_the_nth_write(self, text, tmp_path, monkeypatch, nth):
        calls = iter(range(1, 10**6))
        fsync = os.fsync

        def full(handle: int) -> None:
            if next(calls) >= 2 * nth:
                raise OSError(errno.ENOSPC, "No space left on device")
            fsync(handle)

        with monkeypatch.context() as patch:
            patch.setattr(files.os, "fsync", full)
            assert_error(train(text, "run"), "No space left on device; free disk space")
        out = tmp_path / "run"
        if RunDir(out).exists:
            assert_resumes(text, out, tmp_path)
        else:
            assert train(text, "run").status == 0  # no leftover blocks a new run

    @pytest.fixture
    def small_disk(self) -> Iterator[Path]:
        """A disk of 300 KB."""
        folder = Path(tempfile.mkdtemp())
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=300k", "none", folder], capture_output=True, check=False
        )
        if mounted.returncode:
            folder.rmdir()
            pytest.skip("can't mount a small disk here")
        yield folder
        subprocess.run(["umount", "--lazy", folder], check=True)
        folder.rmdir()

    @pytest.mark.skipif(shutil.which("mount") is None, reason="no mount")
    def test_full_disk_for_real(self, text, small_disk, tmp_path):
        ballast = small_disk / "ballast"
        ballast.write_bytes(b"x" * 100_000)
        assert_error(train(text, small_disk / "run"), "No space left on device")
        out = small_disk / "run"
        before = listing(out)
        assert_error(train(text, out, "--resume"), "No space left on device")
        assert {name for name in listing(out) if name.endswith(".tmp")} == set()
        assert before.keys() >= {"config.json", "tokenizer.json"}
        ballast.unlink()
        assert_resumes(text, out, tmp_path)


@POSIX
class TestFileSizeLimit:
    """``ulimit -f`` cuts a write off midway, with neither a full disk nor a missing permission."""

    CHILD = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
from makemore.cli import run
sys.exit(run(sys.argv[2:]))
"""

    def run_limited(self, size: int, *arguments: object) -> Result:
        process = subprocess.run(
            [sys.executable, "-c", self.CHILD, str(size), *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        return Result(process.returncode, process.stdout, process.stderr)

    def test_new_run_leaves_nothing(self, text, tmp_path):
        assert_error(self.run_limited(1000, "train", text, "--out", "run", *FLAGS), "File too large")
        assert not list(tmp_path.rglob("*.tmp"))
        assert train(text, "run").status == 0

    def test_resumed_run_keeps_its_state(self, text, tmp_path):
        half = [*FLAGS[: FLAGS.index("--steps")], "--steps", "6", *FLAGS[FLAGS.index("--steps") + 2 :]]
        assert train(text, "run", *half).status == 0
        out = tmp_path / "run"
        saved = state_of(out)
        tensors = max(path.stat().st_size for path in out.rglob("tensors.safetensors"))
        assert_error(
            self.run_limited(tensors // 2, "train", text, "--out", "run", "--resume", "--steps", "12"),
            "File too large",
        )
        assert not list(out.rglob("*.tmp"))
        assert same(state_of(out), saved)
        assert train(text, "run", "--resume", "--steps", "12").status == 0
        assert check_run(out) == []


class TestOutputs:
    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
    @pytest.mark.parametrize(
        ("command", "stream", "status", "message"),
        [
            ("models", "stdout", 2, "makemore: can't write the output: No space left on device\n"),
            ("train --help", "stdout", 2, "makemore: can't write the output: No space left on device\n"),
            ("train none.txt", "stderr", 2, None),
        ],
    )
    def test_full_output_device_is_reported(self, command, stream, status, message):
        with open("/dev/full", "w") as full:
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: full}
            arguments = [sys.executable, "-m", "makemore", *command.split()]
            result = subprocess.run(arguments, text=True, check=False, **pipes)
        assert (result.returncode, result.stderr) == (status, message)

    def test_training_continues_if_stderr_fails(self, text, tmp_path, monkeypatch):
        class BrokenStream:
            def write(self, data: str) -> None:
                raise OSError(errno.EIO, "Input/output error")

            flush = isatty = fileno = lambda self: self.write("")

        with contextlib.redirect_stderr(BrokenStream()):  # type: ignore[type-var]
            assert train(text, "run").status == 0
        assert check_run(tmp_path / "run") == []


@contextlib.contextmanager
def unwritable_folder() -> Iterator[Path]:
    """A folder that can only be read; root, which can write anywhere, becomes the user nobody."""
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        if os.geteuid() == 0:
            os.seteuid(65534)
        else:
            folder.chmod(0o555)
        yield folder
    finally:
        with contextlib.suppress(OSError):
            os.seteuid(os.getuid())
        folder.chmod(0o755)
        shutil.rmtree(folder)


@POSIX
class TestPermissions:
    def test_unwritable_folder_is_reported(self, text):
        content = text.read_bytes()
        with unwritable_folder() as folder:
            if os.geteuid() == 65534:
                os.seteuid(0)
                (folder / "words.txt").write_bytes(content)
                os.seteuid(65534)
            assert_error(
                call("train", folder / "words.txt", "--out", folder / "run", *FLAGS), "Permission denied"
            )
            assert {p.name for p in folder.iterdir()} <= {"words.txt"}

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root to make a run")
    def test_read_only_run_can_be_sampled_but_not_changed(self, text):
        content = text.read_bytes()
        with unwritable_folder() as folder:
            os.seteuid(0)
            (folder / "words.txt").write_bytes(content)
            assert train(folder / "words.txt", folder / "run").status == 0
            before = listing(folder)
            os.seteuid(65534)
            assert call("sample", folder / "run", "-n", "2").status == 0
            assert call("check", folder / "run").status == 0
            assert_error(train(folder / "words.txt", folder / "run", "--resume"), "Permission denied")
            assert_error(
                train(folder / "words.txt", folder / "run", *FLAGS, "--overwrite"), "Permission denied"
            )
            os.seteuid(0)
            assert listing(folder) == before

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root to hide files")
    def test_unreadable_files_are_reported(self, text):
        with unwritable_folder() as folder:
            os.seteuid(0)
            (folder / "words.txt").write_bytes(text.read_bytes())
            assert train(folder / "words.txt", folder / "run").status == 0
            for name in ("config.json", "tokenizer.json", "model.safetensors"):
                os.seteuid(0)
                (folder / "run" / name).chmod(0)
                os.seteuid(65534)
                assert_error(call("sample", folder / "run"), f"{name}: Permission denied")
                os.seteuid(0)
                (folder / "run" / name).chmod(0o644)


class TestConcurrentProcesses:
    def test_locked_run_can_be_read_but_not_written(self, text, tmp_path):
        assert train(text, "run").status == 0
        before = listing(tmp_path / "run")
        with RunDir(Path("run")).locked():
            assert_error(train(text, "run", "--resume"), "another process is writing run")
            assert_error(train(text, "run", *FLAGS, "--overwrite"), "another process is writing run")
            assert call("sample", "run", "-n", "2").status == 0  # reading needs no lock
        assert listing(tmp_path / "run") == before

    def test_two_processes_create_one_run(self, text, tmp_path, monkeypatch):
        """The second process finds the run of the first, although there was none when it checked."""
        create = RunDir.create

        def slow(self, *args):
            created = create(self, *args)
            monkeypatch.undo()
            monkeypatch.chdir(tmp_path)
            assert_error(train(text, "run"), "already holds a run")
            return created

        monkeypatch.setattr(RunDir, "create", slow)
        assert train(text, "run").status == 0
        assert check_run(tmp_path / "run") == []

    def test_file_is_never_read_half_written(self, tmp_path):
        """A reader sees one complete version of a file."""
        path = tmp_path / "a.json"

        def write(value: int) -> None:
            for _ in range(20):
                files.write_json(path, {"value": [value] * 1000})

        write(0)
        writer = threading.Thread(target=write, args=(1,))
        writer.start()
        while writer.is_alive():
            assert set(files.read_json(path)["value"]) <= {0, 1}
        writer.join()

    def test_two_processes_build_one_cache_entry(self, tmp_path):
        """Both build before either has finished; one result is kept, and both read it."""
        environment = {**os.environ, "MAKEMORE_CACHE": str(tmp_path / "cache")}
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", BUILD_ENTRY],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for _ in range(2)
        ]
        for process in processes:
            assert process.stdout.readline() == "building\n"
        outputs = [process.communicate("go\n", timeout=120)[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0]
        assert outputs[0] == outputs[1]
        assert int(outputs[0]) in [process.pid for process in processes]
        assert not list((tmp_path / "cache").rglob(".building-*"))


BUILD_ENTRY = """
import os
from makemore.corpus.cache import Cache
def build(folder):
    (folder / "pid").write_text(str(os.getpid()))
    print("building", flush=True)
    input()
    return {}
folder, _ = Cache("things").get_or_build("key", build)
print((folder / "pid").read_text())
"""
"""Builds a cache entry, waiting midway for a line on stdin."""


class TestClocks:
    @pytest.mark.parametrize("jump", [-1e9, 1e9])
    def test_jumps_of_the_wall_clock_do_not_matter(self, text, tmp_path, monkeypatch, jump):
        start, calls = time.time(), iter(range(10**6))
        monkeypatch.setattr(time, "time", lambda: start + jump * (next(calls) % 3))
        assert_resumes(text, tmp_path / "run", tmp_path) if train(text, "run").status == 0 else pytest.fail(
            "stopped"
        )

    def test_clock_that_runs_backwards_takes_no_time(self, text, tmp_path, monkeypatch):
        """A monotonic clock should never go back, but in a virtual machine it can after migration."""
        ticks = iter([100.0, 101.0, 102.0, 40.0, 41.0, *(float(i) for i in range(42, 10**5))])
        monkeypatch.setattr("makemore.training.trainer.time.perf_counter", lambda: next(ticks))
        result = call("train", text, "-m", "bigram", "--max-time", "30", "--out", "run", "--device", "cpu")
        assert result.status == 0, result.err
        elapsed = [line["elapsed"] for line in RunDir(tmp_path / "run").metrics.read()]
        assert elapsed == sorted(elapsed)
        assert elapsed[-1] < 100
