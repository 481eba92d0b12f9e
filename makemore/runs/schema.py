"""Validate JSON values against schemas written as Python types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from makemore.errors import UserError
from makemore.runtime.files import read_json

METRICS_SEAL = {"bytes": int, "sha256": str}
"""Size and checksum of ``metrics.jsonl`` when the checksum was stored."""


def check_schema(value: Any, schema: Any, name: str = "") -> None:
    """Check that a value matches a schema. Raises ValueError naming the first mismatch.

    A schema is a type; a tuple of allowed values; ``[schema]``, a list whose items match it; or a dict
    of required keys and their schemas (other keys are allowed).
    """
    if isinstance(schema, dict):
        _require(isinstance(value, dict), name, "an object")
        for key, inner in schema.items():
            _require(key in value, f"{name}.{key}".lstrip("."), "present")
            check_schema(value[key], inner, f"{name}.{key}".lstrip("."))
    elif isinstance(schema, list):
        _require(isinstance(value, list), name, "a list")
        for i, item in enumerate(value):
            check_schema(item, schema[0], f"{name}[{i}]")
    elif isinstance(schema, tuple):
        _require(any(value == known for known in schema), name, " or ".join(map(repr, schema)))
    elif schema in (int, float):
        number = isinstance(value, int) or (schema is float and isinstance(value, float))
        _require(number and not isinstance(value, bool), name, "a number")
    else:
        _require(isinstance(value, schema), name, f"a {schema.__name__}")


def _require(condition: bool, name: str, expected: str) -> None:
    if not condition:
        raise ValueError(f"{name or 'the value'} is not {expected}")


def read_checked_json(path: Path, schema: Any) -> dict[str, Any]:
    """Read a JSON file. Raises UserError if it doesn't match the schema."""
    payload = read_json(path)
    try:
        check_schema(payload, schema)
    except ValueError as error:
        raise UserError(f"{path} is damaged or from another version: {error}") from None
    return payload
