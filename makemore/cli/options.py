"""Options shared by several commands, and parsing of their values."""

from __future__ import annotations

import os
import shlex
import subprocess
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
ENCODING = typer.Option(
    None, "--encoding", help="Text encoding (default: utf-8); utf-8:replace replaces invalid bytes."
)
SKIP_DAMAGED = typer.Option(
    None, "--skip-damaged", help="Leave out files that can't be decompressed or decoded."
)
TOKENIZERS = "char, byte, bpe:512, spm:512, spm-unigram:512 or tiktoken:gpt2"
TOKENIZER = typer.Option("char", "--tokenizer", "-t", help=f"{TOKENIZERS}.")


def given(**values: Any) -> dict[str, Any]:
    """The options that aren't None."""
    return {name: value for name, value in values.items() if value is not None}


def quote_command(*arguments: str) -> str:
    """A command line to paste into a shell."""
    return subprocess.list2cmdline(arguments) if os.name == "nt" else " ".join(map(_quote, arguments))


def _quote(argument: str) -> str:
    """Quote for bash and zsh; bytes that can't be printed are escaped within ``$'…'``."""
    if argument.isprintable():
        return shlex.quote(argument)
    plain = set(map(chr, range(0x20, 0x7F))) - set("\\'")
    escaped = (char if (char := chr(byte)) in plain else f"\\x{byte:02x}" for byte in os.fsencode(argument))
    return f"$'{''.join(escaped)}'"
