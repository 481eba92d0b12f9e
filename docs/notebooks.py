"""Offer the lectures as Jupyter notebooks: a hook of MkDocs.

Each page of ``docs/lectures`` is a notebook in jupytext's Markdown format: its Python code blocks are cells.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

import jupytext
from mkdocs.structure.files import File, Files

FOLDER = "lectures"
RELATIVE_LINK = re.compile(r"\[([^\]\n]+)\]\((?!https?:)[^)\n]+\)")


def is_lecture(path: str) -> bool:
    """Whether a page of the docs is a lecture."""
    page = PurePosixPath(path)
    return page.parent.name == FOLDER and page.suffix == ".md" and page.stem != "README"


def to_notebook(markdown: str) -> str:
    """A lecture as a notebook, in JSON; links to other pages, which it can't follow, become plain text."""
    notebook = jupytext.reads(markdown, fmt="md")
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = RELATIVE_LINK.sub(r"\1", cell.source)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return jupytext.writes(notebook, fmt="ipynb")


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Called by MkDocs once it has listed all files: adds a notebook for each lecture."""
    for page in [file for file in files if is_lecture(file.src_uri)]:
        path = str(PurePosixPath(page.src_uri).with_suffix(".ipynb"))
        files.append(File.generated(config, path, content=to_notebook(page.content_string)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by MkDocs for each page: links a lecture's notebook below its title."""
    path = page.file.src_uri
    if not is_lecture(path):
        return markdown
    title, _, rest = markdown.partition("\n")
    return f"{title}\n\n[Download this page as a notebook]({PurePosixPath(path).stem}.ipynb)\n{rest}"
