"""A self-contained HTML page (no scripts, no network) of all pictures and verdicts."""

from __future__ import annotations

import base64
import re
from html import escape
from pathlib import Path

from makemore.inspection.subject import Picture, Verdict
from makemore.report.page import generator, page

MARKS = {"good": "✓", "note": "•", "warning": "⚠"}
MADE_BY = "makemore inspect"


def inspection_page(
    title: str, facts: dict[str, str], pictures: list[Picture], images: dict[str, bytes]
) -> str:
    """Build the HTML; ``images`` maps picture names to PNG bytes."""
    verdicts = [verdict for picture in pictures for verdict in picture.verdicts]
    rows = "".join(
        f'<tr><td class="words">{escape(name)}</td><td class="words">{escape(fact)}</td></tr>'
        for name, fact in facts.items()
    )
    sections = "".join(_section(picture, images[picture.name]) for picture in pictures)
    body = (
        f'<h1>{escape(title)}</h1>\n<div class="wide"><table class="facts">{rows}</table></div>\n'
        f"<h2>Findings</h2>\n{_list(verdicts)}\n{sections}"
    )
    return page(title, body, made_by=MADE_BY)


def picture_names(path: Path) -> list[str] | None:
    """Names of the pictures on an inspection page; None if the file isn't one."""
    try:
        html = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return re.findall(r'<section id="(\w+)">', html) if generator(MADE_BY) in html else None


def _section(picture: Picture, image: bytes) -> str:
    data = base64.b64encode(image).decode("ascii")
    return (
        f'<section id="{picture.name}"><h2>{escape(picture.title)}</h2>\n{_list(picture.verdicts)}\n'
        f'<div class="picture"><img alt="{escape(picture.title)}" src="data:image/png;base64,{data}"></div>\n'
        f'<p class="soft">{escape(picture.caption)}</p></section>\n'
    )


def _list(verdicts: list[Verdict]) -> str:
    items = "".join(
        f'<li class="{verdict.kind}"><b>{MARKS[verdict.kind]}</b> {escape(verdict.text)}</li>'
        for verdict in verdicts
    )
    return f'<ul class="verdicts">{items}</ul>'
