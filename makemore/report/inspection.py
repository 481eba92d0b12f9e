"""The HTML page of an inspection: pictures and findings, without scripts or network."""

from __future__ import annotations

import base64
import contextlib
import re
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from makemore.errors import UserError
from makemore.inspection.figures import png
from makemore.inspection.inspect import draw_pictures
from makemore.inspection.subject import Finding, Picture
from makemore.report.page import generator, page, write_page
from makemore.runs.run import Run
from makemore.runtime.files import is_temporary, write_bytes

MARKS = {"good": "✓", "note": "•", "warning": "⚠"}
MADE_BY = "makemore inspect"


@dataclass(frozen=True)
class Inspection:
    """Result of an inspection: the files written and the findings."""

    folder: Path
    files: list[Path]
    findings: list[Finding]
    left_out: str = ""
    """Why some pictures are missing; empty if none are."""

    @property
    def page(self) -> Path:
        return self.folder / "index.html"

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("page", "files", "findings", "left_out")}


def inspect(run: Run, out: Path | None = None, text: str | None = None) -> Inspection:
    """Write the pictures of a run and the findings, by default into a directory next to it.

    Attention and gates are shown on ``text`` (default: a line of val). Raises UserError if the run can't
    encode the text, or if the directory holds anything other than an inspection.
    """
    folder = out or run.sibling("-inspect")
    old_images = _old_images(folder)
    drawing = draw_pictures(run, text)
    images = {picture.name: png(picture.figure) for picture in drawing.pictures}
    # Write the page first: it marks the directory as an inspection even if interrupted here.
    write_page(folder / "index.html", inspection_page(drawing.title, drawing.facts, drawing.pictures, images))
    for path in old_images:
        path.unlink(missing_ok=True)
    for name, image in images.items():
        write_bytes(folder / f"{name}.png", image)
    return Inspection(
        folder=folder,
        files=[folder / "index.html", *(folder / f"{name}.png" for name in images)],
        findings=[finding for picture in drawing.pictures for finding in picture.findings],
        left_out=drawing.left_out,
    )


def _old_images(folder: Path) -> list[Path]:
    """Picture files of an earlier inspection. Raises UserError if ``folder`` holds anything else."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a directory; choose another --out")
    if not folder.exists() or all(map(is_temporary, folder.iterdir())):
        return []
    html = ""
    with contextlib.suppress(OSError):
        html = (folder / "index.html").read_text(encoding="utf-8", errors="replace")
    if generator(MADE_BY) not in html:
        raise UserError(f"{folder} is not an inspection; choose another --out")
    return [folder / f"{name}.png" for name in re.findall(r'<section id="(\w+)">', html)]


def inspection_page(
    title: str, facts: dict[str, str], pictures: list[Picture], images: dict[str, bytes]
) -> str:
    """Build the HTML; ``images`` maps picture names to PNG bytes."""
    findings = [finding for picture in pictures for finding in picture.findings]
    rows = "".join(
        f'<tr><td class="words">{escape(name)}</td><td class="words">{escape(fact)}</td></tr>'
        for name, fact in facts.items()
    )
    sections = "".join(_section(picture, images[picture.name]) for picture in pictures)
    body = (
        f'<h1>{escape(title)}</h1>\n<div class="wide"><table class="facts">{rows}</table></div>\n'
        f"<h2>Findings</h2>\n{_list(findings)}\n{sections}"
    )
    return page(title, body, made_by=MADE_BY)


def _section(picture: Picture, image: bytes) -> str:
    data = base64.b64encode(image).decode("ascii")
    return (
        f'<section id="{picture.name}"><h2>{escape(picture.title)}</h2>\n{_list(picture.findings)}\n'
        f'<div class="picture"><img alt="{escape(picture.title)}" src="data:image/png;base64,{data}"></div>\n'
        f'<p class="soft">{escape(picture.caption)}</p></section>\n'
    )


def _list(findings: list[Finding]) -> str:
    items = "".join(
        f'<li class="{finding.kind}"><b>{MARKS[finding.kind]}</b> {escape(finding.text)}</li>'
        for finding in findings
    )
    return f'<ul class="findings">{items}</ul>'
