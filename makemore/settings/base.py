"""The base class of settings: validated by pydantic, with one-line errors.

Settings come from a TOML file, the command line and ``--set section.name=value``; later ones win.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from makemore.errors import UserError, unknown_name

Fraction = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]

SIMILAR = {
    "batch_size": "use train.batch_tokens, the tokens of a step: rows times train.block_size",
    "epochs": "use train.steps: an epoch is the number of training tokens divided by train.batch_tokens",
    "min_lr": "use train.final_lr_fraction, a fraction of the peak learning rate",
} | {name: f"use model.{name}" for name in ("dropout", "n_embd", "n_head", "n_hidden", "n_layer")}
"""Advice for common names that are not settings here, or belong to another section."""
EXPECTED = {
    "bool": "true or false",
    "finite": "a number",
    "float": "a number",
    "int": "a whole number",
    "missing": "given",
    "model": "a group of settings",
    "string": "text",
}
"""What a value must be, by the first word of pydantic's error type."""
LIMITS = {
    "greater_than": "above {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "less_than": "below {lt:g}",
    "less_than_equal": "{le:g} or less",
}
SECTION_CLASSES: dict[str, type[Settings]] = {}
"""Sections of settings, to find a setting that was written in another."""


class Settings(BaseModel):
    """Base class: immutable, validated, without unknown names.

    The group may be omitted: ``lr`` means ``optimizer.lr``. A setting may also be named by an alias.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True, protected_namespaces=()
    )
    aliases: ClassVar[Mapping[str, str]] = {}
    """Names from earlier versions (still used in old runs and TOML files) and from other programs."""
    main: ClassVar[str] = ""
    """The setting that a plain value sets, as in ``optimizer = "muon"``."""

    @model_validator(mode="before")
    @classmethod
    def _arrange(cls, values: Any) -> Any:
        return arrange(cls, values) if isinstance(values, Mapping) else values

    def replace(self, **changes: Any) -> Self:
        """A validated copy with some settings changed. Raises UserError if they are invalid."""
        return parse(type(self), {**dict(self), **changes})


class Group(Settings):
    """Base class of the groups within a section."""

    @classmethod
    def has(cls, name: str) -> bool:
        """Whether a setting may be named without this group."""
        return name in cls.model_fields and name != cls.main


S = TypeVar("S", bound=Settings)


def _join_list(values: Any) -> Any:
    return ",".join(map(str, values)) if isinstance(values, list | tuple) else values


_LIST_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "number"}}]}
CommaSeparated = Annotated[str, BeforeValidator(_join_list), WithJsonSchema(_LIST_SCHEMA)]
"""Numbers separated by commas, which may also be set as a list."""


def inner_settings(cls: type[Settings]) -> dict[str, type[Settings]]:
    """The fields that are settings themselves, sections or groups, with their classes."""
    kinds = {name: field.annotation for name, field in cls.model_fields.items()}
    return {n: kind for n, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Settings)}


def arrange(cls: type[Settings], values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace aliases by names, and move settings that are named without their group into it."""
    inner = inner_settings(cls)
    arranged: dict[str, Any] = {}
    for alias, value in values.items():
        name = cls.aliases.get(alias, alias)
        if name not in cls.model_fields:
            group = next((g for g, c in inner.items() if issubclass(c, Group) and c.has(name)), None)
            name, value = (group, {name: value}) if group else (name, value)
        if name in inner and (part := _as_mapping(inner[name], value)) is not None:
            arranged[name] = {**arranged.get(name, {}), **arrange(inner[name], part)}
        else:
            arranged[name] = _read(cls, name, value)
    return arranged


def _as_mapping(cls: type[Settings], value: Any) -> Mapping[str, Any] | None:
    if isinstance(value, Settings):
        return dict(value)
    if isinstance(value, Mapping):
        return value
    return {cls.main: value} if cls.main else None


def _read(cls: type[Settings], name: str, value: Any) -> Any:
    """Read ``none`` as None where None is allowed, and prevent booleans from being parsed as numbers."""
    kinds = typing.get_args(field.annotation) if (field := cls.model_fields.get(name)) else ()
    if isinstance(value, str) and value.lower() == "none" and type(None) in kinds:
        return None
    return str(value).lower() if isinstance(value, bool) else value


def merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested dictionaries; values of ``second`` replace those of ``first``."""
    merged = dict(first)
    for name, value in second.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = merge(merged[name], value) if both else value
    return merged


def override(base: S, requested: Settings, section: str) -> S:
    """A copy of ``base`` with the settings that ``requested`` was given explicitly.

    Raises UserError if the combination is invalid.
    """
    return parse(type(base), merge(base.model_dump(), requested.model_dump(exclude_unset=True)), section)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of a nested dictionary by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        inner = flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
        flat.update(inner)
    return flat


def setting_names(cls: type[Settings], prefix: str = "") -> list[str]:
    """Dotted names of all settings, also in groups."""
    inner, names = inner_settings(cls), list[str]()
    for name in cls.model_fields:
        names += setting_names(inner[name], f"{prefix}{name}.") if name in inner else [prefix + name]
    return names


def parse(cls: type[S], values: Any, section: str = "") -> S:
    """Validate settings. Raises UserError naming the first invalid one and what it must be."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise _user_error(cls, error, section) from None
    except UnicodeEncodeError as error:  # a lone surrogate
        raise UserError(f"{section or 'settings'}: {error.object!r} is not valid Unicode") from None


def _user_error(cls: type[Settings], error: ValidationError, section: str) -> UserError:
    first = error.errors(include_url=False)[0]
    if first["type"] == "extra_forbidden":
        path = ".".join(filter(None, [section, *map(str, first["loc"])]))
        return _unknown_setting(path, setting_names(cls, f"{section}." if section else ""))
    return UserError(describe_error(error, section))


def describe_error(error: ValidationError, section: str = "") -> str:
    """The first problem that pydantic found: the name, the value, and what it must be."""
    first = error.errors(include_url=False)[0]
    path = ".".join(filter(None, [section, *map(str, first["loc"])]))
    text = _describe(first["type"], first.get("ctx", {}), first["msg"])
    is_part = isinstance(first["input"], Mapping | BaseModel)
    return f"{path}: {text}" if is_part else f"{path}={first['input']}: {text}"


def _describe(kind: str, context: Mapping[str, Any], message: str) -> str:
    if kind in LIMITS:
        return f"must be {LIMITS[kind].format(**context)}"
    if kind == "literal_error":
        return f"must be one of {context['expected'].replace(' or ', ', ')}".replace("'", "")
    if kind == "value_error":
        return str(context["error"])
    expected = EXPECTED.get(kind.partition("_")[0])
    return f"must be {expected}" if expected else message[:1].lower() + message[1:]


def _unknown_setting(path: str, known: list[str]) -> UserError:
    """The error for an unknown setting, naming the right one if it is known or similar."""
    section, name = path.partition(".")[0], path.rpartition(".")[2]
    advice = SIMILAR.get(name)
    for other, cls in SECTION_CLASSES.items():
        current = cls.aliases.get(name, name)
        if other != section and current in (n.rpartition(".")[2] for n in setting_names(cls)):
            advice = f"use {other}.{current}"
    if advice and advice != f"use {path}":
        return UserError(f"unknown setting {path!r}; {advice}")
    groups = {group for name in known if (group := name.rpartition(".")[0]).startswith(f"{section}.")}
    near = [n for n in known if n.startswith(f"{path.rpartition('.')[0]}.")]
    message, list_of_names = str(unknown_name("setting", path, {*near, *groups} or known)), " known: "
    return UserError(message.partition(list_of_names)[0] if "did you mean" in message else message)
