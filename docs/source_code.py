"""Show code on the site: a hook of MkDocs.

Replaces comments such as ``<!-- code: makemore/models/mlp.py MLP.forward -->`` by the named functions and
classes, read from the source when the site is built.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = re.compile(r"^<!-- code: (\S+) (.+) -->$", re.MULTILINE)


def find(tree: ast.Module, name: str) -> ast.stmt:
    """The definition of ``function``, ``Class`` or ``Class.method``. Raises KeyError if there is none."""
    node: Any = tree
    for part in name.split("."):
        matches = [child for child in node.body if getattr(child, "name", None) == part]
        if not matches:
            raise KeyError(name)
        node = matches[0]
    return node


def code(path: str, names: str) -> str:
    """The source of some definitions in a file, with the class that methods belong to."""
    text = (ROOT / path).read_text(encoding="utf-8")
    lines, tree, parts, last_class = text.splitlines(), ast.parse(text), [], ""
    for name in names.split():
        node = find(tree, name)
        owner = name.rpartition(".")[0]
        if owner and owner != last_class:
            parts.append(lines[find(tree, owner).lineno - 1])
        last_class = owner
        parts.append("\n".join(lines[node.lineno - 1 : node.end_lineno]) + "\n")
    return "\n".join(parts)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs for each page."""
    return REFERENCE.sub(lambda m: f'```python title="{m[1]}"\n{code(m[1], m[2])}```', markdown)
