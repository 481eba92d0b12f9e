"""All pictures and verdicts on one page that needs nothing else: no script, no network."""

from __future__ import annotations

import base64
from html import escape

from makemore.inspection.subject import Picture, Verdict

MARKS = {"good": "✓", "note": "•", "warning": "⚠"}
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; background: #fff; }
h1, h2 { line-height: 1.2; }
section { margin-top: 2.5rem; }
img { max-width: 100%; height: auto; border: 1px solid #ddd; }
li { list-style: none; }
.good b { color: #00664a; } .note b { color: #444; } .warning b { color: #b00020; }
.caption { color: #444; }
table { border-collapse: collapse; } td { padding: .1rem 1rem .1rem 0; }
"""


def page(title: str, facts: dict[str, str], pictures: list[Picture], images: dict[str, bytes]) -> str:
    """The HTML; ``images``: PNG by the picture's name."""
    verdicts = [verdict for picture in pictures for verdict in picture.verdicts]
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(fact)}</td></tr>" for name, fact in facts.items())
    sections = "".join(_section(picture, images[picture.name]) for picture in pictures)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n<h1>{escape(title)}</h1>\n<table>{rows}</table>\n"
        f"<h2>In plain words</h2>\n{_list(verdicts)}\n{sections}</body>\n</html>\n"
    )


def _section(picture: Picture, image: bytes) -> str:
    data = base64.b64encode(image).decode("ascii")
    return (
        f'<section id="{picture.name}"><h2>{escape(picture.title)}</h2>\n{_list(picture.verdicts)}\n'
        f'<img alt="{escape(picture.title)}" src="data:image/png;base64,{data}">\n'
        f'<p class="caption">{escape(picture.caption)}</p></section>\n'
    )


def _list(verdicts: list[Verdict]) -> str:
    items = "".join(
        f'<li class="{verdict.kind}"><b>{MARKS[verdict.kind]}</b> {escape(verdict.text)}</li>'
        for verdict in verdicts
    )
    return f"<ul>{items}</ul>"
