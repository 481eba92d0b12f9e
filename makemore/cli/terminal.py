"""Print text from files and runs with its control codes escaped."""

from __future__ import annotations

import json
import sys
from typing import Any

from makemore.runtime.characters import escape_control_chars


def echo(text: str = "", *, err: bool = False) -> None:
    """Print a message, escaped, to stdout or stderr."""
    print(escape_control_chars(text), file=sys.stderr if err else sys.stdout, flush=True)


def echo_sample(text: str, end: str = "\n") -> None:
    """Print generated text to stdout: escaped on a terminal, unchanged in a file or pipe."""
    is_terminal = sys.stdout.isatty()
    print(escape_control_chars(text) if is_terminal else text, end=end, flush=is_terminal)


def print_json(payload: Any) -> None:
    """Print a JSON object, also of data classes and paths; NaN and infinities become null."""
    from pydantic_core import to_jsonable_python  # slow to import

    text = json.dumps(to_jsonable_python(payload, inf_nan_mode="null"), ensure_ascii=False)
    print(escape_control_chars(text, json.dumps))
