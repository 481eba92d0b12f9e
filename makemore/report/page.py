"""A self-contained HTML page, with inline style and scripts."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from pathlib import Path

from makemore.errors import UserError
from makemore.runtime.files import require_replaceable, write_bytes

CONTROL_PICTURES = (
    {i: chr(0x2400 + i) for i in range(32) if chr(i) not in "\n\t"}
    | {0x7F: "␡"}
    | {i: f"\\x{i:x}" for i in range(0x80, 0xA0)}
    | {i: f"\\u{i:x}" for i in (0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))}
)
"""Visible replacements of control characters, line separators and characters that reverse text."""


def page(title: str, body: str, *scripts: str, made_by: str = "makemore") -> str:
    """An HTML document. ``body`` is HTML, ``scripts`` are JavaScript."""
    code = "".join(f"<script>{script}</script>\n" for script in scripts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{generator(made_by)}
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{escape(title).translate(CONTROL_PICTURES)}</title>
<style>
{resource("style.css")}</style>
</head>
<body>
{body.translate(CONTROL_PICTURES)}
{code}</body>
</html>
"""


def generator(made_by: str) -> str:
    """The meta tag by which a generated page is recognised."""
    return f'<meta name="generator" content="{made_by}">'


def resource(name: str) -> str:
    """The text of a file in this package."""
    return files("makemore.report").joinpath(name).read_text(encoding="utf-8")


def require_page_path(path: Path) -> None:
    """Raise UserError if ``path`` is a directory, or a file other than a page of makemore's."""
    if path.is_dir() or path.parent.is_file():
        raise UserError(f"--html {path}: can't write a file there; give another path")
    require_replaceable(path, [b'<meta name="generator" content="makemore'], "--html")


def write_page(path: Path, html: str) -> None:
    """Write a page atomically. Raises UserError if it can't be written."""
    write_bytes(path, html.encode("utf-8", errors="replace"))
