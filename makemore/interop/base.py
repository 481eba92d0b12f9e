"""Interface of export formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from makemore.models.base import LanguageModel
from makemore.runs.run import Run


@dataclass(frozen=True, kw_only=True)
class ExportFormat:
    """How to write a model and its tokenizer for another program."""

    suffix: str
    """Suffix of the default output path; starts with a dot for a single file."""
    files: Callable[[Run], Mapping[str, bytes]]
    """Map file names ("" for a single file) to contents. Raises UserError if the model can't be exported."""
    note: Callable[[LanguageModel], str] = lambda model: ""
    """Returns a one-line hint for the user, or an empty string."""
    is_export: Callable[[Path], bool] = lambda path: False
    """Whether an existing directory is an export of this format, which may be overwritten."""

    front_matter: str = ""
    """YAML at the head of the model card, read by model hubs."""

    @property
    def is_directory(self) -> bool:
        return not self.suffix.startswith(".")
