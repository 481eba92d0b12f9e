"""Error messages for the Python API: arguments and settings in place of command-line flags."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from makemore.errors import UserError
from makemore.settings import CorpusConfig, TrainConfig
from makemore.settings.base import flatten

P = ParamSpec("P")
T = TypeVar("T")

_VALUE = r"'[^']*'|-?\d[^\s,;:)]*|cpu|cuda|count|lines|text|rollback|skip|cp1252|utf-8:replace"
_FLAG = re.compile(rf"(?<![\w-])--?([a-z][a-z-]*)(?:[ =]({_VALUE}))?(?![\w-])")
_SETTING = re.compile(r"--set ([a-z_.]+)=([^\s,;:)]+)")
_DEFAULTS = flatten({"train": TrainConfig().model_dump(), "corpus": CorpusConfig().model_dump()})


def in_python_terms(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function of the API: its errors name arguments instead of flags."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            error.args = (python_terms(str(error), function),)
            raise

    return wrapper


def python_terms(message: str, function: Callable[..., Any]) -> str:
    """Replace the command-line flags in a message by arguments of ``function`` or by settings."""
    parameters = inspect.signature(function).parameters

    def argument(match: re.Match[str]) -> str:
        name, value = match[1].replace("-", "_"), match[2]
        default = parameters[name].default if name in parameters else None
        if name not in parameters:
            key = next((key for key in _DEFAULTS if key.endswith(f".{name}")), None)
            name, default = (f"settings[{key!r}]", _DEFAULTS[key]) if key else (name, None)
        if value is None:
            return f"{name}=True" if default is False else name
        return f"{name}={value}" if re.fullmatch(r"'.*'|-?[\d.]+(e-?\d+)?", value) else f"{name}={value!r}"

    message = _SETTING.sub(r"settings['\1']=\2", message)
    return _FLAG.sub(argument, message.replace("--set ", "settings "))
