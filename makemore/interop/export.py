"""Export a run to another program's format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from makemore.errors import UserError
from makemore.interop import FORMATS
from makemore.interop.base import ExportFormat
from makemore.interop.card import model_card
from makemore.runs.run import Run
from makemore.runtime.files import write_bytes

CARD = "README.md"


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """Result of an export."""

    path: Path
    """The file or directory."""
    card: Path
    """The model card, in the directory or beside the file."""
    format: str
    bytes: int
    """Size of the file, or of all files of the directory."""
    note: str = ""
    """One-line hint for the user, or empty."""


def export(run: Run, format: str, out: Path | None = None, overwrite: bool = False) -> ExportResult:
    """Write a run's model and tokenizer in another program's format, by default next to the run, and a model
    card: ``README.md`` in a directory, or the file's name with ``.md``.

    Raises UserError if the format can't represent the model, or if ``out`` already exists.
    """
    target = FORMATS.get(format)
    path = out or run.sibling(target.suffix)
    _check_output(path, target, overwrite)
    card = path / CARD if target.is_directory else path.with_name(f"{path.name}.md")
    if not target.is_directory and card.exists() and not overwrite:
        raise UserError(f"{card} already exists; add --overwrite or choose another --out")
    try:
        files = target.files(run)
    except UserError as error:
        if not run.folder.members:
            raise
        members = ", ".join(str(member.path) for member in run.folder.members)
        raise UserError(f"{error}; members can be exported alone: {members}") from None
    written = {path / name if name else path: data for name, data in files.items()}
    written[card] = model_card(run, target.front_matter)
    for file, data in written.items():
        write_bytes(file, data)
    size = sum(map(len, written.values())) if target.is_directory else len(written[path])
    return ExportResult(path=path, card=card, format=format, bytes=size, note=target.note(run.model))


def _check_output(path: Path, target: ExportFormat, overwrite: bool) -> None:
    if not path.exists():
        return
    if path.is_dir() != target.is_directory:
        raise UserError(f"{path} can't be overwritten; choose another --out")
    if target.is_directory and not any(path.iterdir()):
        return
    if target.is_directory and not target.is_export(path):
        raise UserError(f"{path} is not an export of this format; choose another --out")
    if not overwrite:
        raise UserError(f"{path} already exists; add --overwrite or choose another --out")
