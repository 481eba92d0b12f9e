"""Options shared by several commands, and parsing of their values."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from typing import Any

import typer

JSON = typer.Option(False, "--json", help="Print one JSON object to stdout.")
RUN = typer.Argument(..., help="Run directory, or a run's name in checkpoints/.")
DEVICE = typer.Option("auto", "--device", help="auto, cpu, cuda, cuda:1 or mps.")
INPUT = typer.Argument(
    [],
    help="Input text: files (plain, .gz, .zst), directories, globs, URLs, '-' for stdin, or a data set name "
    "(default: first-names).",
    show_default=False,
)
MODE = typer.Option(
    None,
    "--mode",
    help="How to read the input: one document per line (lines), one document (text), or detect "
    "(auto, default).",
)
TOKENIZERS_HELP = "char, byte, bpe:512, spm:512, spm-unigram:512 or tiktoken:gpt2"
TOKENIZER = typer.Option("char", "--tokenizer", "-t", help=f"{TOKENIZERS_HELP}.")


def escape_control_chars(text: str) -> str:
    """Escape control characters except newlines, because input files are untrusted."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def quote_command(*arguments: str) -> str:
    """A command line to paste into a shell."""
    return subprocess.list2cmdline(arguments) if os.name == "nt" else shlex.join(arguments)


def print_json(payload: dict[str, Any]) -> None:
    """Print one JSON object to stdout; NaN and infinities become null."""
    from makemore.runtime.files import finite  # imports torch

    json.dump(finite(payload), sys.stdout, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")
