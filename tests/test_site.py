"""The documentation site: builds without warnings and loads nothing from the network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
RESOURCE_URL = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?([^\"\s>]+)"
    r"|<link\b(?=[^>]*\brel=\"?(?:stylesheet|preconnect|preload|icon))[^>]*\bhref=\"?([^\"\s>]+)"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return folder


def test_pages_of_models_show_their_code(site: Path) -> None:
    for page in (ROOT / "docs" / "ladder").glob("*.md"):
        if page.stem != "README":
            html = (site / "ladder" / f"{page.stem}.html").read_text(encoding="utf-8")
            assert "<!-- code:" not in html, page
            assert 'class="filename"' in html, page
    html = (site / "ladder" / "mlp.html").read_text(encoding="utf-8")
    assert "torch.tanh" in re.sub(r"<[^>]*>", "", html)


def test_lectures_are_notebooks(site: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    for page in (ROOT / "docs" / "lectures").glob("*.md"):
        if page.stem != "README":
            html = (site / "lectures" / f"{page.stem}.html").read_text(encoding="utf-8")
            assert f'href="{page.stem}.ipynb"' in html, page
            notebook = nbformat.read(site / "lectures" / f"{page.stem}.ipynb", as_version=4)
            nbformat.validate(notebook)
            assert "](../" not in "".join(cell.source for cell in notebook.cells)


def test_every_page_is_built_and_in_the_navigation(site: Path) -> None:
    index = (site / "index.html").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        url = page.relative_to(ROOT / "docs").with_suffix(".html").as_posix()
        url = url.replace("README.html", "index.html")
        assert (site / url).is_file(), url
        assert f'href="{url}"' in index, f"{page.name} isn't in mkdocs.yml's nav"


def test_no_resource_is_loaded_from_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    urls = [a or b for page in pages for a, b in RESOURCE_URL.findall(page.read_text(encoding="utf-8"))]
    assert len(urls) > len(pages)
    assert [url for url in urls if "//" in url] == []
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", styles)
