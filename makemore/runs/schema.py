"""What a JSON value has to look like, said in Python's own types."""

from __future__ import annotations

from typing import Any


def check_form(value: Any, form: Any, name: str = "") -> None:
    """Raises ValueError, which says what of the value is not of a form.

    A form is a type; a tuple of the values that may be; ``[form]``, a list of values of a form; or a
    dict of the keys that have to be there, and the form of each. Other keys may be there too.
    """
    if isinstance(form, dict):
        _require(isinstance(value, dict), name, "an object")
        for key, inner in form.items():
            _require(key in value, f"{name}.{key}".lstrip("."), "there")
            check_form(value[key], inner, f"{name}.{key}".lstrip("."))
    elif isinstance(form, list):
        _require(isinstance(value, list), name, "a list")
        for nth, item in enumerate(value):
            check_form(item, form[0], f"{name}[{nth}]")
    elif isinstance(form, tuple):
        _require(any(value == known for known in form), name, " or ".join(map(repr, form)))
    elif form in (int, float):
        number = isinstance(value, int) or (form is float and isinstance(value, float))
        _require(number and not isinstance(value, bool), name, "a number")
    else:
        _require(isinstance(value, form), name, f"a {form.__name__}")


def _require(condition: bool, name: str, what: str) -> None:
    if not condition:
        raise ValueError(f"{name or 'the whole'} is not {what}")
