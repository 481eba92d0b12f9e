"""Record the terminal picture of the README: docs/terminal.svg. Run it from the project's top.

    python docs/make_terminal.py

Runs each command in a temporary folder and draws its output.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 112
COMMANDS = (
    (
        "makemore train names.txt",
        r"lines mode|^train |parameters|val:|chars\) *$|for comparison|is worse|steps in",
    ),
    ("makemore sample checkpoints/names-transformer -n 8", ""),
    ("makemore sample checkpoints/names-transformer -n 1 --show-probs --seed 3", ""),
    ("makemore train names.txt --model count", r"val:|chars\) *$"),
    ("makemore compare checkpoints/names-transformer checkpoints/names-count", ""),
)
"""Command lines, and a pattern of the messages to show (empty: the output)."""


def output_lines(command: str, pattern: str, folder: Path) -> str:
    """Output of a command, with a terminal's colours."""
    words = [sys.executable, "-m", *shlex.split(command)]
    env = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(WIDTH)}
    done = subprocess.run(
        words, cwd=folder, env=env, capture_output=True, text=True, encoding="utf-8", check=True
    )
    if not pattern:
        return done.stdout.rstrip("\n")
    without_cursor = re.sub(r"\r|\x1b\[[0-9;?]*[A-HJKhl]", "\n", done.stderr)
    lines = [line for line in without_cursor.splitlines() if line.strip() and "━" not in line]
    # Samples during training, and the evaluation above each.
    is_sample = [line.startswith(" " * 6) for line in lines]
    shown = [a or b for a, b in zip(is_sample, [*is_sample[1:], False], strict=True)]
    return "\n".join(line for line, s in zip(lines, shown, strict=True) if s or re.search(pattern, line))


def main() -> None:
    """Write the picture."""
    console = Console(record=True, width=WIDTH, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy("data/first-names.txt", Path(folder) / "names.txt")
        for command, pattern in COMMANDS:
            console.print(f"[bold green]$[/] [bold]{command}[/]", highlight=False)
            console.print(Text.from_ansi(output_lines(command, pattern, Path(folder))))
            console.print()
    svg = console.export_svg(title="makemore")
    # No fonts from elsewhere.
    svg = re.sub(r"@font-face\s*{.*?}", "", svg, flags=re.DOTALL)
    Path("docs/terminal.svg").write_text(
        svg.replace("Fira Code", "ui-monospace, Consolas, Menlo"), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
