"""Export a run to another program's format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from makemore.errors import UserError, unknown_name
from makemore.interop.hf_import import is_hugging_face
from makemore.runs.run import Run
from makemore.runtime.files import write_bytes

FORMAT_SUFFIXES = {"hf": "-hf", "onnx": ".onnx", "arpa": ".arpa"}
"""Suffix of the default output path, by format."""
KENLM_DEFAULT_MAX_ORDER = 6


@dataclass(frozen=True)
class ExportResult:
    """Result of an export."""

    path: Path
    format: str
    bytes: int
    note: str = ""
    """One-line hint for the user, or empty."""

    def as_dict(self) -> dict[str, Any]:
        return {"path": str(self.path), "format": self.format, "bytes": self.bytes, "note": self.note}


def export(run: Run, format: str, out: Path | None = None, overwrite: bool = False) -> ExportResult:
    """Write a run's model and tokenizer in another program's format, by default next to the run.

    Raises UserError if the format can't represent the model, or if ``out`` is taken.
    """
    if format not in FORMAT_SUFFIXES:
        raise unknown_name("format", format, FORMAT_SUFFIXES)
    path = out or run.sibling(FORMAT_SUFFIXES[format])
    _check_output(path, format == "hf", overwrite)
    if format == "hf":
        return _hugging_face(run, path)
    return _arpa(run, path) if format == "arpa" else _onnx(run, path)


def _check_output(path: Path, is_folder: bool, overwrite: bool) -> None:
    if not path.exists():
        return
    if path.is_dir() != is_folder:
        raise UserError(f"{path} can't be overwritten; choose another --out")
    if is_folder and not any(path.iterdir()):
        return
    if is_folder and not is_hugging_face(path):
        raise UserError(f"{path} is not a Hugging Face model directory; choose another --out")
    if not overwrite:
        raise UserError(f"{path} already exists; add --overwrite or choose another --out")


def _hugging_face(run: Run, path: Path) -> ExportResult:
    from makemore.interop.hf import hf_files

    files = hf_files(run.model, run.tokenizer)
    for name, data in files.items():
        write_bytes(path / name, data)
    return ExportResult(path, "hf", sum(map(len, files.values())))


def _onnx(run: Run, path: Path) -> ExportResult:
    from makemore.interop.onnx import onnx_bytes

    data = onnx_bytes(run.model, run.tokenizer)
    write_bytes(path, data)
    return ExportResult(path, "onnx", len(data))


def _arpa(run: Run, path: Path) -> ExportResult:
    from makemore.interop.arpa import arpa_lines

    data = "".join(f"{line}\n" for line in arpa_lines(run.model, run.tokenizer)).encode()
    write_bytes(path, data)
    order = run.model.config.order
    note = (
        f"order {order}: build KenLM with KENLM_MAX_ORDER={order}" if order > KENLM_DEFAULT_MAX_ORDER else ""
    )
    return ExportResult(path, "arpa", len(data), note)
