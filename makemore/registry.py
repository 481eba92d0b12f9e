"""Lazy registries: map names to ``module:Class`` strings, imported on first use."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Generic, TypeVar

from makemore.errors import UserError, unknown_name

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps names to classes or functions, imported lazily to keep help and errors from importing torch."""

    def __init__(self, kind: str, entries: dict[str, str], others: dict[str, str] | None = None) -> None:
        """``others``: names without an entry, and what the error for them says."""
        self.kind, self.others = kind, others or {}
        self._entries = dict(entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def items(self) -> Iterator[tuple[str, str]]:
        """Names and their ``module:Class``."""
        return iter(self._entries.items())

    def register(self, name: str, path: str) -> None:
        """Add an entry, ``package.module:Class``; also for entries defined outside makemore."""
        self._entries[name] = path

    def path(self, name: str) -> str:
        """The ``module:Class`` of a name. Raises UserError, suggesting the closest name, if unknown."""
        if name in self.others:
            raise UserError(f"{name} is {self.others[name]}")
        if name not in self._entries:
            raise unknown_name(self.kind, name, self._entries)
        return self._entries[name]

    def get(self, name: str) -> T:
        """Import the entry of a name. Raises UserError, suggesting the closest name, if unknown."""
        module, _, attribute = self.path(name).partition(":")
        return getattr(importlib.import_module(module), attribute)
