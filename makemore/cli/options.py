"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import json
import math
import re
import sys
from typing import Any

import typer

from makemore.errors import UserError

JSON = typer.Option(False, "--json", help="Print exactly one JSON object on stdout.")
DEVICE = typer.Option("auto", "--device", help="auto, cpu, cuda, cuda:1 or mps.")
INPUT = typer.Argument(
    [],
    help="Texts: files (.gz and .zst too), folders, globs, URLs, - for standard input, or a data set's name "
    "(default: first names).",
    show_default=False,
)
TOKENIZER = typer.Option(
    "char", "--tokenizer", "-t", help="char, byte, bpe:512, spm:512, spm-unigram:512 or tiktoken:gpt2."
)
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def seconds(text: str | None) -> float | None:
    """``90``, ``90s``, ``2m`` or ``1.5h`` in seconds. Raises UserError for anything else."""
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


def print_json(payload: dict[str, Any]) -> None:
    """One JSON object on stdout; numbers that JSON has no word for become null."""
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
