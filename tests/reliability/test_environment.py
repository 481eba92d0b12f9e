"""Full disks, read-only folders, outputs that can't be written, clocks that jump, two processes: one clear
line, nothing half-written, the earlier state intact."""

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

POSIX = pytest.mark.skipif(os.name != "posix", reason="devices and rights of POSIX")
RECIPE = ["--mode", "lines", "--device", "cpu", "--dtype", "float32", "--no-compile", "--steps", "12"]
BEGIN = [*RECIPE, *(part for setting in SETTINGS for part in ("--set", setting))]


@pytest.fixture
def text(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text(words(60), encoding="utf-8")
    return tmp_path / "words.txt"


def train(text: Path, out: Path | str, *arguments: str) -> Result:
    return call("train", text, "--out", out, *(arguments or BEGIN))


def one_line(result: Result, said: str) -> None:
    assert result.status == 2, result
    assert "Traceback" not in result.err
    lines = [line for line in result.err.splitlines() if line.startswith("makemore: ")]
    assert len(lines) == 1, result.err
    assert said in lines[0]


def goes_on(text: Path, out: Path, tmp_path: Path) -> None:
    """What is there is whole, and ends as a run that nothing happened to."""
    assert not list(out.rglob("*.tmp"))
    assert train(text, out, "--resume").status == 0
    assert train(text, tmp_path / "whole").status == 0
    assert same(state_of(out), state_of(tmp_path / "whole"))
    assert check_run(out) == []


class TestFullDisk:
    @pytest.mark.parametrize("nth", [1, 2, 5, 9, 14, 20])
    def test_at_any_write(self, text, tmp_path, monkeypatch, nth):
        calls = iter(range(1, 10**6))
        fsync = os.fsync

        def full(handle: int) -> None:
            if next(calls) >= 2 * nth:
                raise OSError(errno.ENOSPC, "No space left on device")
            fsync(handle)

        with monkeypatch.context() as patch:
            patch.setattr(files.os, "fsync", full)
            one_line(train(text, "run"), "No space left on device; free disk space, then resume")
        out = tmp_path / "run"
        if RunDir(out).exists:
            goes_on(text, out, tmp_path)
        else:
            assert train(text, "run").status == 0  # nothing is in the way

    @pytest.fixture
    def small(self) -> Iterator[Path]:
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
    def test_a_real_one(self, text, small, tmp_path):
        ballast = small / "ballast"
        ballast.write_bytes(b"x" * 100_000)
        one_line(train(text, small / "run"), "No space left on device")
        out = small / "run"
        before = listing(out)
        one_line(train(text, out, "--resume"), "No space left on device")
        assert {name for name in listing(out) if name.endswith(".tmp")} == set()
        assert before.keys() >= {"config.json", "tokenizer.json"}
        ballast.unlink()
        goes_on(text, out, tmp_path)


@POSIX
class TestFileSizes:
    """``ulimit -f``: a write is cut off midway, which is neither a full disk nor a missing right."""

    CHILD = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
from makemore.cli import run
sys.exit(run(sys.argv[2:]))
"""

    def limited(self, size: int, *arguments: object) -> Result:
        ended = subprocess.run(
            [sys.executable, "-c", self.CHILD, str(size), *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        return Result(ended.returncode, ended.stdout, ended.stderr)

    def test_a_new_run(self, text, tmp_path):
        one_line(self.limited(1000, "train", text, "--out", "run", *BEGIN), "File too large")
        assert not list(tmp_path.rglob("*.tmp"))
        assert train(text, "run").status == 0

    def test_a_run_that_goes_on(self, text, tmp_path):
        half = [*BEGIN[: BEGIN.index("--steps")], "--steps", "6", *BEGIN[BEGIN.index("--steps") + 2 :]]
        assert train(text, "run", *half).status == 0
        out = tmp_path / "run"
        saved = state_of(out)
        tensors = max(path.stat().st_size for path in out.rglob("tensors.safetensors"))
        one_line(
            self.limited(tensors // 2, "train", text, "--out", "run", "--resume", "--steps", "12"),
            "File too large",
        )
        assert not list(out.rglob("*.tmp"))
        assert same(state_of(out), saved)
        assert train(text, "run", "--resume", "--steps", "12").status == 0
        assert check_run(out) == []


class TestOutputs:
    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
    @pytest.mark.parametrize(
        ("command", "where", "status", "said"),
        [
            ("models", "stdout", 2, "makemore: can't write the output: No space left on device\n"),
            ("train --help", "stdout", 2, "makemore: can't write the output: No space left on device\n"),
            ("train none.txt", "stderr", 2, None),
        ],
    )
    def test_a_full_one(self, command, where, status, said):
        with open("/dev/full", "w") as full:
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, where: full}
            arguments = [sys.executable, "-m", "makemore", *command.split()]
            result = subprocess.run(arguments, text=True, check=False, **pipes)
        assert (result.returncode, result.stderr) == (status, said)

    def test_training_goes_on_where_nobody_can_be_told(self, text, tmp_path, monkeypatch):
        class Gone:
            def write(self, said: str) -> None:
                raise OSError(errno.EIO, "Input/output error")

            flush = isatty = fileno = lambda self: self.write("")

        with contextlib.redirect_stderr(Gone()):  # type: ignore[type-var]
            assert train(text, "run").status == 0
        assert check_run(tmp_path / "run") == []


@contextlib.contextmanager
def nobody() -> Iterator[Path]:
    """A folder that may be read and not written; root may write anywhere, so the process is nobody."""
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
class TestNoRights:
    def test_a_folder_that_may_not_be_written(self, text):
        content = text.read_bytes()
        with nobody() as folder:
            if os.geteuid() == 65534:
                os.seteuid(0)
                (folder / "words.txt").write_bytes(content)
                os.seteuid(65534)
            one_line(
                call("train", folder / "words.txt", "--out", folder / "run", *BEGIN), "Permission denied"
            )
            assert {p.name for p in folder.iterdir()} <= {"words.txt"}

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="makes a run as root")
    def test_a_run_that_may_be_read_only(self, text):
        content = text.read_bytes()
        with nobody() as folder:
            os.seteuid(0)
            (folder / "words.txt").write_bytes(content)
            assert train(folder / "words.txt", folder / "run").status == 0
            before = listing(folder)
            os.seteuid(65534)
            assert call("sample", folder / "run", "-n", "2").status == 0
            assert call("check", folder / "run").status == 0
            one_line(train(folder / "words.txt", folder / "run", "--resume"), "Permission denied")
            one_line(train(folder / "words.txt", folder / "run", *BEGIN, "--overwrite"), "Permission denied")
            os.seteuid(0)
            assert listing(folder) == before

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="hides files as root")
    def test_files_that_may_not_be_read(self, text):
        with nobody() as folder:
            os.seteuid(0)
            (folder / "words.txt").write_bytes(text.read_bytes())
            assert train(folder / "words.txt", folder / "run").status == 0
            for name in ("config.json", "tokenizer.json", "model.safetensors"):
                os.seteuid(0)
                (folder / "run" / name).chmod(0)
                os.seteuid(65534)
                one_line(call("sample", folder / "run"), f"{name}: Permission denied")
                os.seteuid(0)
                (folder / "run" / name).chmod(0o644)


class TestTwoProcesses:
    def test_one_run_directory(self, text, tmp_path):
        assert train(text, "run").status == 0
        before = listing(tmp_path / "run")
        with RunDir(Path("run")).locked():
            one_line(train(text, "run", "--resume"), "another process is writing run")
            one_line(train(text, "run", *BEGIN, "--overwrite"), "another process is writing run")
            assert call("sample", "run", "-n", "2").status == 0  # reading is for all
        assert listing(tmp_path / "run") == before

    def test_both_begin_at_once(self, text, tmp_path, monkeypatch):
        """The one that is second finds the run of the first, though there was none when it looked."""
        create = RunDir.create

        def slow(self, *args):
            found = create(self, *args)
            monkeypatch.undo()
            monkeypatch.chdir(tmp_path)
            one_line(train(text, "run"), "already holds a run")
            return found

        monkeypatch.setattr(RunDir, "create", slow)
        assert train(text, "run").status == 0
        assert check_run(tmp_path / "run") == []

    def test_one_file(self, tmp_path):
        """Whoever is last to write a file has written it whole."""
        path = tmp_path / "a.json"

        def write(value: int) -> None:
            for _ in range(20):
                files.write_json(path, {"value": [value] * 1000})

        write(0)
        reading = threading.Thread(target=write, args=(1,))
        reading.start()
        while reading.is_alive():
            assert set(files.read_json(path)["value"]) <= {0, 1}
        reading.join()

    def test_one_cache_entry(self, tmp_path):
        """Both begin before either has ended; one's is kept, and both read the same."""
        environment = {**os.environ, "MAKEMORE_CACHE": str(tmp_path / "cache")}
        made = [
            subprocess.Popen(
                [sys.executable, "-c", MAKING],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for _ in range(2)
        ]
        for process in made:
            assert process.stdout.readline() == "building\n"
        told = [process.communicate("go\n", timeout=120)[0] for process in made]
        assert [process.returncode for process in made] == [0, 0]
        assert told[0] == told[1]
        assert int(told[0]) in [process.pid for process in made]
        assert not list((tmp_path / "cache").rglob(".building-*"))


MAKING = """
import os
from makemore.corpus.cache import Cache
def build(folder):
    (folder / "who").write_text(str(os.getpid()))
    print("building", flush=True)
    input()
    return {}
folder, _ = Cache("things").make("key", build)
print((folder / "who").read_text())
"""
"""A process that makes a cache entry, and waits midway until it is told to go on."""


class TestClocks:
    @pytest.mark.parametrize("jump", [-1e9, 1e9])
    def test_the_time_of_day_counts_for_nothing(self, text, tmp_path, monkeypatch, jump):
        begun, calls = time.time(), iter(range(10**6))
        monkeypatch.setattr(time, "time", lambda: begun + jump * (next(calls) % 3))
        goes_on(text, tmp_path / "run", tmp_path) if train(text, "run").status == 0 else pytest.fail(
            "stopped"
        )

    def test_one_that_runs_backwards_takes_no_time(self, text, tmp_path, monkeypatch):
        """Not that a monotonic clock would; a virtual machine's may after it was moved."""
        ticks = iter([100.0, 101.0, 102.0, 40.0, 41.0, *(float(i) for i in range(42, 10**5))])
        monkeypatch.setattr("makemore.training.trainer.time.perf_counter", lambda: next(ticks))
        result = call("train", text, "-m", "bigram", "--max-time", "30", "--out", "run", "--device", "cpu")
        assert result.status == 0, result.err
        elapsed = [line["elapsed"] for line in RunDir(tmp_path / "run").read_metrics()]
        assert elapsed == sorted(elapsed)
        assert elapsed[-1] < 100
