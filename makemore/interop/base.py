"""What an export format consists of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from makemore.models.base import LanguageModel
from makemore.tokenizers import Tokenizer


def no_note(model: LanguageModel) -> str:
    """No hint for the user."""
    return ""


def is_never_ours(path: Path) -> bool:
    """Whether a directory holds an export of this format; formats of one file have no directories."""
    return False


@dataclass(frozen=True, kw_only=True)
class ExportFormat:
    """How to write a model and its tokenizer for another program."""

    suffix: str
    """Of the default output path; a directory unless it begins with a dot."""
    files: Callable[[LanguageModel, Tokenizer], Mapping[str, bytes]]
    """Contents by file name, empty for a format of one file. Raises UserError if the model doesn't fit."""
    note: Callable[[LanguageModel], str] = no_note
    """A hint for the user, in one line; empty for none."""
    is_export: Callable[[Path], bool] = is_never_ours
    """Whether an existing directory is an export, which may be overwritten."""

    @property
    def is_directory(self) -> bool:
        return not self.suffix.startswith(".")
