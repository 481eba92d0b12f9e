"""A run in another program's format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from makemore.errors import UserError, unknown_name
from makemore.interop.hf_import import is_hugging_face
from makemore.runs.run import Run
from makemore.runtime.files import write_bytes

FORMATS = {"hf": "-hf", "onnx": ".onnx", "arpa": ".arpa"}
"""What is put after a run's name for its default place."""
KENLM_ORDER = 6


@dataclass(frozen=True)
class Exported:
    """What was written, and where."""

    path: Path
    format: str
    bytes: int
    note: str = ""
    """One line worth telling the user."""

    def as_dict(self) -> dict[str, Any]:
        return {"path": str(self.path), "format": self.format, "bytes": self.bytes, "note": self.note}


def export(run: Run, format: str, out: Path | None = None, overwrite: bool = False) -> Exported:
    """Write a run's model and tokenizer for another program; beside the run unless told where.

    Raises UserError for a model that the format can't hold, and for a place that is taken.
    """
    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    path = out or run.beside(FORMATS[format])
    _check_place(path, format == "hf", overwrite)
    if format == "hf":
        return _hugging_face(run, path)
    return _arpa(run, path) if format == "arpa" else _onnx(run, path)


def _check_place(path: Path, folder: bool, overwrite: bool) -> None:
    if not path.exists():
        return
    if path.is_dir() != folder:
        raise UserError(f"{path} is in the way; name another --out")
    if folder and not any(path.iterdir()):
        return
    if folder and not is_hugging_face(path):
        raise UserError(f"{path} holds something else than a Hugging Face model; name another --out")
    if not overwrite:
        raise UserError(f"{path} is there already; add --overwrite or name another --out")


def _hugging_face(run: Run, path: Path) -> Exported:
    from makemore.interop.hf import hf_files

    files = hf_files(run.model, run.tokenizer)
    for name, data in files.items():
        write_bytes(path / name, data)
    return Exported(path, "hf", sum(map(len, files.values())))


def _onnx(run: Run, path: Path) -> Exported:
    from makemore.interop.onnx import onnx_bytes

    data = onnx_bytes(run.model, run.tokenizer)
    write_bytes(path, data)
    return Exported(path, "onnx", len(data))


def _arpa(run: Run, path: Path) -> Exported:
    from makemore.interop.arpa import arpa_lines

    data = "".join(f"{line}\n" for line in arpa_lines(run.model, run.tokenizer)).encode()
    write_bytes(path, data)
    order = run.model.config.order
    note = f"order {order}: KenLM has to be built with KENLM_MAX_ORDER={order}" if order > KENLM_ORDER else ""
    return Exported(path, "arpa", len(data), note)
