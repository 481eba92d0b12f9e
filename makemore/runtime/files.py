"""Atomic writes and verified reads of a run's files.

Settings are JSON, tensors safetensors; nothing is ever unpickled. Every file records its own name and
checksum, and is written to a temporary file, flushed to disk and renamed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic_core import to_jsonable_python
from safetensors import SafetensorError, safe_open
from torch import Tensor

from makemore.errors import UserError
from makemore.runtime.process import total_memory
from makemore.runtime.untrusted import MAX_JSON_BYTES, parse_json

MAX_HEADER_BYTES = 16 << 20
"""Maximum bytes of a tensor file's header (names and shapes), enough for some 200,000 tensors."""
MAX_BYTES = 1 << 62
"""Size limit on systems that don't report their memory."""
SAFETENSORS_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The format's names of tensors' types."""
RECORD = "makemore"
"""The entry of a tensor file's metadata with its file name, checksum and run id."""
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


def write_bytes(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file atomically, part after part. Raises UserError if it can't be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with user_write_errors(path):
        make_dir_durably(path.parent)
        try:
            # A leftover of a killed process with the same pid, or a link planted to redirect the write.
            temporary.unlink(missing_ok=True)
            with temporary.open("xb") as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        sync_dir(path.parent)


@contextlib.contextmanager
def user_write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError within the block into a UserError that gives the remedy."""
    try:
        yield
    except OSError as error:
        advice = ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = "; free disk space (--resume continues an interrupted run)"
        elif error.errno == errno.ENAMETOOLONG:
            advice = "; give a shorter name with --out"
        raise UserError(f"can't write {path}: {error.strerror}{advice}") from None


def make_dir_durably(folder: Path) -> None:
    """Create a directory and its parents, durable across power failures."""
    if not folder.is_dir():
        make_dir_durably(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_dir(folder.parent)


def sync_dir(folder: Path) -> None:
    """Flush a directory's entries to disk."""
    # A rename is durable once its directory is flushed; Windows has no such call and needs none.
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def is_temporary(path: Path) -> bool:
    """Whether this is a temporary file that ``write_bytes`` left behind when killed."""
    return _TEMPORARY.fullmatch(path.name) is not None


def require_replaceable(path: Path, marks: Sequence[bytes], option: str) -> None:
    """Raise UserError if an output file would replace a file of another kind.

    Args:
        path: the output file.
        marks: a file that may be replaced has one of these in its first 4 KiB.
        option: the command-line option with the path, for the message.
    """
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{option} {path}: {error.strerror}; choose another path") from None
    if start and not any(mark in start for mark in marks):
        raise UserError(f"{option} {path}: the file exists and is of another kind; choose another path")


def stat_regular_file(path: Path) -> os.stat_result | None:
    """``lstat`` of a regular file, or None if it doesn't exist or can't be accessed.

    Raises UserError for links, directories and devices.
    """
    try:
        info = path.lstat()
    except (OSError, ValueError):
        return None
    if stat.S_ISLNK(info.st_mode):
        raise UserError(f"{path} is a link; symbolic links aren't allowed in a run directory")
    if not stat.S_ISREG(info.st_mode):
        raise UserError(f"{path} is damaged: it is not a regular file")
    return info


def require_file(path: Path, max_size: int) -> os.stat_result:
    """``lstat`` of a regular file. Raises UserError if it is missing or larger than ``max_size`` bytes."""
    info = stat_regular_file(path)
    if info is None:
        raise UserError(f"{path} is missing; the run is incomplete")
    if info.st_size > max_size:
        raise UserError(f"{path} is damaged: its {info.st_size:,} bytes exceed the limit of {max_size:,}")
    return info


@contextlib.contextmanager
def user_format_errors(path: Path, runs_model_code: bool = False) -> Iterator[None]:
    """Turn errors from a file's unexpected content into a UserError, even if its checksum matches.

    ``runs_model_code``: an AttributeError is then a bug in the model's own code, and isn't converted.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError) as error:
        if runs_model_code and isinstance(error, AttributeError):
            raise
        reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise UserError(f"{path} is damaged or from another version: {reason}") from None


@contextlib.contextmanager
def utf8_path(path: Path) -> Iterator[Path]:
    """A path of an existing file that is valid UTF-8, which safetensors needs."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with path.open("rb") as file:
            yield Path(f"/dev/fd/{file.fileno()}")
    else:
        yield path


def json_digest(payload: Any) -> str:
    """sha256 of a JSON value, independent of white space and key order."""
    text = json.dumps(payload, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_json(path: Path, payload: dict[str, Any]) -> None:
    """Write a JSON object with its file name and checksum; NaN and infinities become null."""
    payload = {**to_jsonable_python(payload, inf_nan_mode="null"), "file": path.name}
    write_bytes(path, _json_bytes({**payload, "sha256": json_digest(payload)}))


def _json_bytes(payload: dict[str, Any]) -> bytes:
    text = json.dumps(payload, indent=1, ensure_ascii=False) + "\n"
    return text.encode("utf-8", errors="backslashreplace")  # file names may have surrogates


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that ``write_json`` wrote. Raises UserError if it is missing, damaged or not makemore's."""
    require_file(path, MAX_JSON_BYTES)
    try:
        data = path.read_bytes()
        payload = parse_json(data.decode("utf-8"))
        as_written = _json_bytes(payload)
        if payload.pop("sha256") != json_digest(payload) or data != as_written:
            raise UserError(f"{path} is damaged: its checksum doesn't match")
        name = payload.pop("file")
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None
    except (ValueError, KeyError, AttributeError, TypeError):
        raise UserError(f"{path} is damaged, or was not written by makemore") from None
    if name != path.name:
        raise UserError(f"{path} is damaged: it is a copy of {name}")
    return payload


def tensor_digest(tensors: dict[str, Tensor]) -> str:
    """sha256 of tensors' names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        if tensor.numel():
            digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_tensors(path: Path, tensors: dict[str, Tensor], run_id: str | None) -> str:
    """Write tensors with their file name, run id (if not None) and checksum; returns the checksum.

    The same arguments give the same bytes.
    """
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    digest = tensor_digest(plain)
    record = {"file": path.name, "sha256": digest, **({} if run_id is None else {"run_id": run_id})}
    # One entry, because safetensors writes several in random order.
    write_bytes(path, *_safetensors(plain, {RECORD: json.dumps(record, separators=(",", ":"))}))
    return digest


def _safetensors(tensors: dict[str, Tensor], metadata: dict[str, str]) -> list[bytes | memoryview]:
    """The parts of a safetensors file, in place of the library's ``save``, which copies tensors twice.

    Tensors of large elements come first, so that each is aligned.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    parts: list[bytes | memoryview] = []
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        begin, end = end, end + tensor.nbytes
        dtype = SAFETENSORS_DTYPES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
        if tensor.nbytes:
            parts.append(tensor.reshape(-1).view(torch.uint8).numpy().data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, *parts]


def read_tensors(
    path: Path, run_id: str, digests: Sequence[str] = (), mapped: bool = False
) -> dict[str, Tensor]:
    """Read a file that ``write_tensors`` wrote; ``digests``: the possible checksums, required without run id;
    ``mapped``: map the tensors from the file, except scalars, instead of copying them to memory.

    Raises UserError if it is missing, damaged, from another run, or larger than memory.
    """
    _check_sizes(path)
    try:
        with utf8_path(path) as name, safe_open(name, framework="pt") as file:
            metadata = file.metadata() or {}
            record = json.loads(metadata[RECORD]) if metadata.keys() == {RECORD} else metadata
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            # Mapped tensors change with the file and keep its disk space in use.
            tensors = {name: t if mapped and t.ndim else t.clone() for name, t in tensors.items()}
        actual = tensor_digest(tensors)
        is_intact = record.keys() | {"run_id"} == {"file", "run_id", "sha256"} and record["sha256"] == actual
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, AttributeError, TypeError):
        raise UserError(f"{path} is damaged, or was not written by makemore") from None
    if not is_intact:
        raise UserError(f"{path} is damaged: its checksum doesn't match")
    if "run_id" not in record and not digests:
        raise UserError(f"{path} can't be verified: the run's weights.json is missing")
    is_known = actual in digests
    if record.get("run_id", run_id if is_known else None) != run_id:
        raise UserError(f"{path} belongs to another run")
    if record["file"] != path.name or not (is_known or not digests):
        raise UserError(f"{path} is damaged: it was replaced by another file of the run")
    return tensors


def require_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise UserError if weights are NaN or infinite."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(
                f"{source} is damaged or has diverged: {name} has weights that are NaN or infinite"
            )


def _check_sizes(path: Path) -> None:
    """Raise UserError for a file larger than memory, before allocating any."""
    require_file(path, total_memory())
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = file.read(size) if size <= MAX_HEADER_BYTES else b""
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None
    # Only spaces may pad the header: the checksum doesn't cover other padding.
    if len(header) != size or not header.rstrip(b" ").endswith(b"}"):
        raise UserError(f"{path} is damaged, or was not written by makemore")
