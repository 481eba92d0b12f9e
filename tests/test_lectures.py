"""The lectures: every notebook executes from top to bottom."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import jupytext
import pytest

from makemore.corpus.datasets import bundled_file, resolve_input_file
from makemore.errors import UserError

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "lectures"
PAGES = sorted(page for page in FOLDER.glob("*.md") if page.stem != "README")
BUDGETS = {"SECONDS": 1, "STEPS": 10}
MAX_LINES = 1000


def quick(source: str, folder: Path) -> str:
    """A cell with small budgets, and the beginning of its text."""
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
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = jupytext.read(page)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) >= 4
    for cell in cells:
        cell.source = quick(cell.source, tmp_path)
    client = nbclient.NotebookClient(
        notebook, timeout=400, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    for cell in cells:
        for line in re.findall(r"^!makemore .*", cell.source, flags=re.MULTILINE):
            printed = "".join(output.get("text", "") for output in cell.outputs)
            assert "error:" not in printed, f"{line}: {printed}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_budgets_are_in_the_first_cell(page: Path) -> None:
    first, *others = [cell.source for cell in jupytext.read(page).cells if cell.cell_type == "code"]
    for source in others:
        assert not re.search(rf"^({'|'.join(BUDGETS)}|TEXT) = ", source, flags=re.MULTILINE)
    uses_text = any("TEXT" in source for source in others)
    assert uses_text == ("TEXT = " in first)
