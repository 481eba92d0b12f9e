"""Validate JSON values against schemas written as Python types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from makemore.errors import UserError
from makemore.runtime.files import read_json

METRICS_SEAL = {"bytes": int, "sha256": str}
"""Size and checksum of ``metrics.jsonl`` when the checksum was stored."""


def check_schema(value: Any, form: Any, name: str = "") -> None:
    """Check that a value matches a schema. Raises ValueError naming the first mismatch.

    A schema is a type; a tuple of allowed values; ``[schema]``, a list whose items match it; or a dict
    of required keys and their schemas (other keys are allowed).
    """
    if isinstance(form, dict):
        _require(isinstance(value, dict), name, "an object")
        for key, inner in form.items():
            _require(key in value, f"{name}.{key}".lstrip("."), "present")
            check_schema(value[key], inner, f"{name}.{key}".lstrip("."))
    elif isinstance(form, list):
        _require(isinstance(value, list), name, "a list")
        for i, item in enumerate(value):
            check_schema(item, form[0], f"{name}[{i}]")
    elif isinstance(form, tuple):
        _require(any(value == known for known in form), name, " or ".join(map(repr, form)))
    elif form in (int, float):
        number = isinstance(value, int) or (form is float and isinstance(value, float))
        _require(number and not isinstance(value, bool), name, "a number")
    else:
        _require(isinstance(value, form), name, f"a {form.__name__}")


def _require(condition: bool, name: str, expected: str) -> None:
    if not condition:
        raise ValueError(f"{name or 'the value'} is not {expected}")


def read_form(path: Path, form: Any) -> dict[str, Any]:
    """Read a JSON file. Raises UserError if it doesn't match ``form``."""
    payload = read_json(path)
    try:
        check_schema(payload, form)
    except ValueError as error:
        raise UserError(f"{path} is damaged or from another version: {error}") from None
    return payload
