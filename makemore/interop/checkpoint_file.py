"""Read PyTorch checkpoints of unknown origin: no code is run, and sizes are known before memory is taken."""

from __future__ import annotations

import pickle
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from makemore.errors import UserError
from makemore.runtime.process import total_memory
from makemore.runtime.untrusted import file_size

_ALLOWED = re.compile(
    r"collections OrderedDict|torch\._utils (_rebuild_tensor_v2|_rebuild_parameter)"
    r"|torch (Float|Half|BFloat16|Double|Long|Int|Short|Char|Byte|Bool)Storage"
)
"""Functions and classes that a checkpoint may name. PyTorch's restricted reader allows more, for instance
``bytearray``, which takes any amount of memory."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint. Raises UserError if it holds anything but tensors and plain values, or more of them
    than its file has bytes for."""
    try:
        size = file_size(path)
        if size > (total_memory()):
            raise UserError(f"{path} doesn't fit in memory")
        _check_contents(path, size)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except (zipfile.BadZipFile, pickle.UnpicklingError):
        raise UserError(
            f"{path} isn't a checkpoint of only tensors and plain values, saved by PyTorch 1.6 or later; it "
            "wasn't loaded because anything else could run code"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, NotImplementedError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise UserError(f"{path} can't be read as a PyTorch checkpoint: {reason}") from None
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint")
    for tensors in (checkpoint, checkpoint.get("model")):
        _check_tensors(path, tensors, size)
    return checkpoint


def _check_contents(path: Path, size: int) -> None:
    """Check the zip archive that ``torch.save`` writes.

    Raises UserError if it unpacks to more bytes than it has, and UnpicklingError if it names functions or
    classes that tensors and plain values don't need.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        is_stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not is_stored or sum(entry.file_size for entry in entries) > size:
            raise UserError(f"{path} unpacks to more bytes than it has; PyTorch doesn't save such files")
        for entry in entries:
            if entry.filename.endswith("data.pkl"):
                for operation, argument, _ in pickletools.genops(archive.read(entry)):
                    is_name = operation.name in ("GLOBAL", "INST") and not _ALLOWED.fullmatch(str(argument))
                    if is_name or operation.name == "STACK_GLOBAL":
                        raise pickle.UnpicklingError


def _check_tensors(path: Path, values: Any, size: int) -> None:
    """Raise UserError if tensors are larger than their file: one stored number can stand for any number.

    They may be twice as large, because tied weights are stored once.
    """
    named = values if isinstance(values, dict) else {}
    total = sum(t.numel() * t.element_size() for t in named.values() if isinstance(t, Tensor))
    if total > 2 * size:
        raise UserError(f"{path} is damaged: {size:,} bytes hold tensors of {total:,} bytes")
