"""Options shared by several commands, and parsing of their values."""

from __future__ import annotations

import json
import math
import re
import sys
from typing import Any

import typer

from makemore.errors import UserError

JSON = typer.Option(False, "--json", help="Print one JSON object to stdout.")
DEVICE = typer.Option("auto", "--device", help="auto, cpu, cuda, cuda:1 or mps.")
INPUT = typer.Argument(
    [],
    help="Input text: files (plain, .gz, .zst), directories, globs, URLs, '-' for stdin, or a data set name "
    "(default: first-names).",
    show_default=False,
)
TOKENIZERS_HELP = "char, byte, bpe:512, spm:512, spm-unigram:512 or tiktoken:gpt2"
TOKENIZER = typer.Option("char", "--tokenizer", "-t", help=f"{TOKENIZERS_HELP}.")
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_duration(text: str | None) -> float | None:
    """Parse a duration such as ``90``, ``90s``, ``2m`` or ``1.5h``; raises UserError if it is malformed."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", text.lower())
    if (
        not match
        or match[2] not in _UNITS
        or not 0 < (value := float(match[1]) * _UNITS[match[2]]) < math.inf
    ):
        raise UserError(f"--max-time {text!r}: give a time such as 90s, 2m or 1.5h")
    return value


def escape_control_chars(text: str) -> str:
    """Escape control characters except newlines, because input files are untrusted."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def print_json(payload: dict[str, Any]) -> None:
    """Print one JSON object to stdout; NaN and infinities become null."""
    json.dump(_finite(payload), sys.stdout, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
