"""Files that are written whole or not at all, and read only if they are what was written.

Settings are JSON, tensors safetensors; nothing is ever unpickled. Every file carries its own name and
checksum and is written beside its place, flushed to disk and renamed into it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from makemore.errors import UserError
from makemore.runtime.process import memory

MOST_JSON = 64 << 20
"""Bytes; the largest that is ever written holds a vocabulary of some megabytes."""
MOST_HEADER = 16 << 20
"""Bytes that names and shapes of a tensor file may take: some 200,000 tensors."""
MOST_BYTES = 1 << 62
"""Where the system doesn't say how much memory it has."""
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file whole or not at all. Raises UserError where it can't be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        make_folder(path.parent)
        try:
            # One that was left by a process of the same number, or put there to be written through.
            temporary.unlink(missing_ok=True)
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system refuses while the block runs becomes a UserError that says what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "; make room, then go on with --resume where a run was under way" if full else ""
        raise UserError(f"can't write {path}: {error.strerror}{advice}") from None


def make_folder(folder: Path) -> None:
    """A folder, and those above it, that is there after a power cut too."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk."""
    # A rename is on disk once its folder is; Windows has no such call and needs none.
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def is_temporary(path: Path) -> bool:
    """Whether this is what ``write_bytes`` leaves behind when its process is killed."""
    return _TEMPORARY.fullmatch(path.name) is not None


def require_plain(path: Path) -> os.stat_result | None:
    """A file's size and times, None where there is none; links and devices aren't followed.

    Raises UserError for anything but a file.
    """
    try:
        info = path.lstat()
    except (OSError, ValueError):
        return None
    if stat.S_ISLNK(info.st_mode):
        raise UserError(f"{path} is a link; the files of a run are in it and nowhere else")
    if not stat.S_ISREG(info.st_mode):
        raise UserError(f"{path} is damaged: it is no file")
    return info


def _require(path: Path, most: int) -> os.stat_result:
    info = require_plain(path)
    if info is None:
        raise UserError(f"{path} is missing; this is no complete run")
    if info.st_size > most:
        raise UserError(f"{path} is damaged: {info.st_size:,} bytes, where {most:,} is the most")
    return info


@contextlib.contextmanager
def well_formed(path: Path) -> Iterator[None]:
    """What a file lacks, or has of another kind, becomes a UserError, whatever its checksum says."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise UserError(f"{path} is damaged or from another version: {reason}") from None


def json_digest(payload: Any) -> str:
    """sha256 of a JSON value, whatever its white space."""
    text = json.dumps(payload, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_json(path: Path, payload: dict[str, Any]) -> None:
    """A JSON object with its name and checksum."""
    payload = {**json.loads(json.dumps(payload)), "file": path.name}
    write_bytes(path, _json_bytes({**payload, "sha256": json_digest(payload)}))


def _json_bytes(payload: dict[str, Any]) -> bytes:
    text = json.dumps(payload, indent=1, ensure_ascii=False) + "\n"
    return text.encode("utf-8", errors="surrogatepass")


def read_json(path: Path) -> dict[str, Any]:
    """What ``write_json`` wrote. Raises UserError if missing, damaged or not ours."""
    _require(path, MOST_JSON)
    try:
        data = path.read_bytes()
        payload = json.loads(data.decode("utf-8", errors="surrogatepass"))
        as_written = _json_bytes(payload)
        if payload.pop("sha256") != json_digest(payload) or data != as_written:
            raise UserError(f"{path} is damaged: its checksum doesn't match")
        name = payload.pop("file")
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise UserError(f"{path} is damaged or not one of makemore's files") from None
    if name != path.name:
        raise UserError(f"{path} is damaged: it is a {name} in another's place")
    return payload


def tensor_digest(tensors: dict[str, Tensor]) -> str:
    """sha256 of names, types, shapes and values."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        if tensor.numel():
            total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def write_tensors(path: Path, tensors: dict[str, Tensor], run_id: str) -> str:
    """Tensors with their name, checksum and the run they belong to; returns the checksum."""
    # Cloned: safetensors refuses tensors that share memory (tied weights).
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    digest = tensor_digest(plain)
    write_bytes(path, save(plain, {"file": path.name, "run_id": run_id, "sha256": digest}))
    return digest


def read_tensors(path: Path, run_id: str, digest: str | None = None) -> dict[str, Tensor]:
    """What ``write_tensors`` wrote; ``digest``: what it returned, where that is known.

    Raises UserError if missing, damaged, another run's, or more than memory holds.
    """
    _check_sizes(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Copies: what is mapped changes with the file, and keeps its room on the disk.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, AttributeError, TypeError):
        raise UserError(f"{path} is damaged or not one of makemore's files") from None
    found = tensor_digest(tensors)
    if metadata.keys() != {"file", "run_id", "sha256"} or metadata["sha256"] != found:
        raise UserError(f"{path} is damaged: its checksum doesn't match")
    if metadata["run_id"] != run_id:
        raise UserError(f"{path} belongs to another run")
    if metadata["file"] != path.name or found != (digest or found):
        raise UserError(f"{path} is damaged: it is another file of the run in its place")
    return tensors


def _check_sizes(path: Path) -> None:
    """Raises UserError for a file that there is no memory for, before any is taken."""
    _require(path, memory() or MOST_BYTES)
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = file.read(size) if size <= MOST_HEADER else b""
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None
    # Blanks fill it up; others would mean the same and go unnoticed.
    if len(header) != size or not header.rstrip(b" ").endswith(b"}"):
        raise UserError(f"{path} is damaged or not one of makemore's files")
