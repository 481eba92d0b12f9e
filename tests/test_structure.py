"""Directories, files and functions stay small.

Run as a script, it prints the sizes: python tests/test_structure.py
"""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "makemore"
MAX_FILES, MAX_FILE_LINES, MAX_FUNCTION_LINES = 14, 350, 60
SOURCES = (".py", ".c", ".h", ".js", ".css", ".html")


def files_per_folder() -> dict[str, int]:
    """Source files in each directory of the package."""
    folders = [PACKAGE, *(p for p in PACKAGE.rglob("*") if p.is_dir() and p.name != "__pycache__")]
    counts = {p: sum(f.suffix in SOURCES for f in p.iterdir() if f.is_file()) for p in folders}
    return {p.relative_to(PACKAGE.parent).as_posix(): n for p, n in counts.items() if n}


def file_lengths() -> dict[str, int]:
    """Lines of each source file."""
    files = [p for p in PACKAGE.rglob("*") if p.suffix in SOURCES]
    return {
        p.relative_to(PACKAGE.parent).as_posix(): len(p.read_text(encoding="utf-8").splitlines())
        for p in files
    }


def function_lengths() -> dict[str, int]:
    """Lines of each function, without the signature of CLI commands."""
    lengths = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                is_command = node.name == "command" and "cli" in path.parts
                first = node.body[0].lineno if is_command else node.lineno
                name = f"{path.relative_to(PACKAGE.parent).as_posix()}:{node.name}"
                lengths[name] = (node.end_lineno or first) - first + 1
    return lengths


def too_large(sizes: dict[str, int], limit: int) -> dict[str, int]:
    return {name: size for name, size in sizes.items() if size > limit}


def test_no_folder_has_too_many_files() -> None:
    assert too_large(files_per_folder(), MAX_FILES) == {}


def test_no_file_is_too_long() -> None:
    assert too_large(file_lengths(), MAX_FILE_LINES) == {}


def test_no_function_is_too_long() -> None:
    assert too_large(function_lengths(), MAX_FUNCTION_LINES) == {}


def test_measurements_are_not_empty() -> None:
    """The measurements find folders, files and functions, so the limits can be exceeded."""
    assert files_per_folder()["makemore/models"] > 10
    assert max(file_lengths().values()) > 200
    assert max(function_lengths().values()) > 30


if __name__ == "__main__":
    for title, sizes, limit in (
        ("files in a folder", files_per_folder(), MAX_FILES),
        ("lines in a file", file_lengths(), MAX_FILE_LINES),
        ("lines in a function", function_lengths(), MAX_FUNCTION_LINES),
    ):
        print(f"{title} (at most {limit})")
        for name, size in sorted(sizes.items(), key=lambda item: -item[1])[:8]:
            print(f"  {size:>4}  {name}")
    python_lines = sum(n for name, n in file_lengths().items() if name.endswith(".py"))
    c_lines = sum(n for name, n in file_lengths().items() if name.endswith((".c", ".h")))
    print(f"{python_lines:,} lines of Python, {c_lines:,} of C")
