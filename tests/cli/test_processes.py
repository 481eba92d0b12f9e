"""Tests that need a separate process: signals, pipes, and which modules are imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.cli.conftest import call

pytestmark = pytest.mark.slow

COMMANDS = ("train", "eval", "sample", "compare", "score", "mix", "gradcheck", "models", "data")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and pipes")


def run_python(code: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, **options
    )


def run_without(module: str, *commands: list[str]) -> str:
    """Output of commands, which must not import the module."""
    code = (
        "import sys\n"
        "from makemore.cli import run\n"
        f"for arguments in {list(commands)!r}:\n"
        "    run(arguments)\n"
        f"    assert {module!r} not in sys.modules, arguments\n"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def test_help_does_not_import_torch():
    output = run_without("torch", ["--help"], ["--version"], *([name, "--help"] for name in COMMANDS))
    assert all(f"makemore {name}" in output for name in COMMANDS)


def test_usage_errors_do_not_import_torch():
    output = run_without(
        "torch", ["trian"], ["train", "--modle"], ["sample"], ["train", "--max-time", "soon"]
    )
    assert "Did you mean 'train'" in output


def test_unknown_models_and_tokenizers_do_not_import_torch():
    output = run_without("torch", ["train", "--model", "transfomer"], ["train", "--tokenizer", "bite"])
    assert "did you mean 'transformer'" in output
    assert "did you mean 'byte'" in output


def test_training_does_not_import_the_compiler(work):
    train = ["train", "words.txt", "--steps", "2", "--set", "train.compile=no"]
    mixture = [*train, "--model", "auto", "--out", "mixture"]
    muon, sgd = (
        [*train, "--model", "lstm", "--set", f"train.optimizer={name}", "--out", name]
        for name in ("muon", "sgd")
    )
    output = run_without("torch._dynamo", mixture, muon, sgd, ["train", "--resume", "--out", "sgd"])
    assert output.count("sample more:") == 4


def test_python_m_makemore_runs_the_program(work):
    result = subprocess.run(
        [sys.executable, "-m", "makemore", "train", "none.txt"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "makemore: no such file: none.txt\n"


@POSIX
@pytest.mark.parametrize("n", [3, 20000])
def test_closed_output_pipe_is_not_an_error(work, n):
    command = f"{sys.executable} -m makemore sample lines -n {n} --seed 1"
    script = f"set -o pipefail; {command} | head -1"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=ENVIRONMENT)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 1


SIGNAL_DURING_IMPORT = """
import os, signal, sys, threading, time
from importlib import abc
signal.signal(signal.SIGINT, signal.default_int_handler)
class Slow(abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            threading.Thread(target=time.sleep, args=(600,)).start()  # like a compiler's thread
            os.kill(os.getpid(), {signum})
            time.sleep(60)
sys.meta_path.insert(0, Slow())
sys.argv = ["makemore", {command!r}, "lines"]
from makemore.cli import main
main()
"""
"""The program, with a signal while it imports torch."""


@POSIX
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("command", ["train", "eval", "sample"])
def test_signal_during_import_exits_cleanly(work, command, signum, status):
    result = run_python(SIGNAL_DURING_IMPORT.format(signum=int(signum), command=command))
    assert (result.returncode, result.stdout) == (status, ""), result.stderr
    assert result.stderr.strip() in ("", "makemore: stopped")  # on Ctrl-C it depends on typer's version


@POSIX
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_run_can_be_resumed(work, signum, status):
    command = ["train", "words.txt", "--model", "bigram", "--out", "run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "makemore", *command, "--steps", "100000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        # Background jobs of a shell ignore SIGINT; the run must not inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        while not (work / "run" / "metrics.jsonl").exists():  # no timeout: the machine may be busy
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signum)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == status, err
    assert out == ""
    assert err.splitlines()[-1].startswith("makemore: stopped; add --resume")
    assert "Traceback" not in err
    step = max(int(state.name) for state in (work / "run" / "state").iterdir())
    result = call(*command, "--resume", "--steps", str(step + 3))
    assert result.status == 0, result.err
    assert f"resuming bigram at step {step:,}" in result.err
    assert call("sample", "run").status == 0
