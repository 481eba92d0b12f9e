"""All commands of the ladder's pages, run in page order on small texts."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from makemore.models import MODELS
from tests.cli.conftest import call, prose, words

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked_runs")]

LADDER = Path(__file__).resolve().parents[2] / "docs" / "ladder"
PAGE = re.compile(r"\[[\w-]+\]\(([\w-]+\.md)\)")


def pages() -> list[Path]:
    """Pages in the order in which the ladder's README links to them."""
    names = dict.fromkeys(PAGE.findall((LADDER / "README.md").read_text(encoding="utf-8")))
    return [LADDER / name for name in names]


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def with_small_budget(arguments: list[str]) -> list[str]:
    """The same command with a small budget."""
    if arguments[0] == "compare" and "--max-time" in arguments:
        i = arguments.index("--max-time")
        models = [] if "--models" in arguments else ["--models", "count,bigram"]
        return [*arguments[: i + 1], "0.2s", *arguments[i + 2 :], *models]
    for budget in ("--max-time", "--steps"):
        if budget in arguments:
            i = arguments.index(budget)
            arguments = [*arguments[:i], "--steps", "2", *arguments[i + 2 :]]
    return arguments


def test_every_model_has_a_linked_page() -> None:
    names = [page.stem for page in pages()]
    assert names[0] == "micrograd"
    assert set(names[1:]) == set(MODELS)
    assert {page.stem for page in LADDER.glob("*.md")} == {"README", *names}


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "names.txt").write_text(words(), encoding="utf-8")
    (tmp_path / "data" / "shakespeare.txt").write_text(prose(), encoding="utf-8")
    monkeypatch.setenv("MAKEMORE_DATA", str(tmp_path / "data"))
    return tmp_path


def test_every_command_succeeds_in_order(workdir: Path) -> None:
    for page in [*pages(), LADDER / "README.md"]:
        for line in commands(page):
            program, *arguments = shlex.split(line)
            if program == "python":
                paths = os.pathsep.join([str(LADDER.parents[1]), os.environ.get("PYTHONPATH", "")])
                environment = {**os.environ, "PYTHONPATH": paths}
                process = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True)
                assert process.returncode == 0, f"{page.name}: {line}: {process.stderr.decode()}"
                continue
            result = call(*with_small_budget(arguments))
            assert result.status == 0, f"{page.name}: {line}: {result.err}"
            assert result.out, f"{page.name}: {line} prints nothing"
    run_names = {folder.name for folder in (workdir / "checkpoints").iterdir()}
    assert {f"names-{name}" for name in MODELS} <= run_names
