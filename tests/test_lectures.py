"""The lectures: every notebook executes from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import jupytext
import pytest
from nbformat.v4 import new_code_cell

from makemore.corpus.datasets import bundled_file, resolve_input_file
from makemore.errors import UserError

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "lectures"
PAGES = sorted(page for page in FOLDER.glob("*.md") if page.stem != "README")
BUDGETS = {"SECONDS": 0.2, "STEPS": 10}
MAX_LINES = 300
COMMANDS_IN_THE_KERNEL = """
def run_commands_in_the_kernel(shell):
    import shlex
    from makemore.cli import run

    def system(command):
        program, *arguments = shlex.split(shell.var_expand(command))
        assert program == "makemore"
        assert run(arguments) == 0, command

    shell.system = system

run_commands_in_the_kernel(get_ipython())
del run_commands_in_the_kernel
"""
"""Run ``!makemore`` without starting a process, which would have to import torch."""
SMALL_BATCHES = "--set train.batch_tokens=256"


def quick(source: str, folder: Path) -> str:
    """A cell with small budgets, and the beginning of its text."""
    source = re.sub(r"^!makemore lr-find .*", rf"\g<0> {SMALL_BATCHES}", source, flags=re.MULTILINE)
    for name, value in BUDGETS.items():
        source = re.sub(rf"^{name} = \d+", f"{name} = {value}", source, flags=re.MULTILINE)

    def text(match: re.Match[str]) -> str:
        try:
            path = resolve_input_file(match[1])
        except UserError:  # not downloaded
            path = bundled_file()
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        beginning = folder / path.name
        beginning.write_text("".join(lines[:MAX_LINES]), encoding="utf-8")
        return f"TEXT = {str(beginning)!r}"

    return re.sub(r'^TEXT = "(\w+)"', text, source, flags=re.MULTILINE)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_notebook_executes(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = jupytext.read(page)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) >= 4
    for cell in cells:
        cell.source = quick(cell.source, tmp_path)
    notebook.cells.insert(0, new_code_cell(COMMANDS_IN_THE_KERNEL))
    client = nbclient.NotebookClient(
        notebook, timeout=400, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_budgets_are_in_the_first_cell(page: Path) -> None:
    first, *others = [cell.source for cell in jupytext.read(page).cells if cell.cell_type == "code"]
    for source in others:
        assert not re.search(rf"^({'|'.join(BUDGETS)}|TEXT) = ", source, flags=re.MULTILINE)
    uses_text = any("TEXT" in source for source in others)
    assert uses_text == ("TEXT = " in first)
