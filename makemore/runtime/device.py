"""Which device, which precision, and whether compiling pays there."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from makemore.errors import UserError
from makemore.runtime import distributed as parallel
from makemore.runtime.cachedir import cache_folder
from makemore.runtime.process import memory
from makemore.settings import TrainConfig

COMPILE_PAYS_AFTER = 75.0
"""Seconds of training from which a CPU's compilation (16 to 30 s, cold) is earned back."""


def pick_device(name: str) -> torch.device:
    """``auto`` is CUDA, then Apple's MPS, then the CPU. Each of several processes has a CUDA device of its
    own; MPS has no way to exchange gradients.

    Raises UserError for a device that doesn't exist or isn't on this machine.
    """
    cuda, mps = torch.cuda.is_available(), has_mps()
    if parallel.size() > 1:
        mps = False
        if name == "cuda" or (name == "auto" and cuda):
            name = f"cuda:{parallel.local_rank()}"
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}; known: auto, cpu, cuda, cuda:N, mps") from None
    if device.type == "cuda" and not cuda:
        raise UserError("--device cuda: this machine has no CUDA (or torch was built without it)")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA device(s)")
    if device.type == "cuda" and device.index is not None and parallel.size() > 1:
        if device.index != parallel.local_rank():
            raise UserError(f"--device {name}: each process has its own; say --device cuda")
        torch.cuda.set_device(device)
    if device.type == "mps" and not mps:
        raise UserError("--device mps: this machine has no Apple GPU that torch can use")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"unknown device {name!r}; known: auto, cpu, cuda, cuda:N, mps")
    return device


def has_mps() -> bool:
    """Whether there is an Apple GPU that gives memory: a virtual Mac's doesn't."""
    if not torch.backends.mps.is_available():
        return False
    try:
        torch.zeros(1, device="mps")
    except RuntimeError:
        return False
    return True


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32 there."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())
    return False


def pick_precision(config: TrainConfig, device: torch.device, autocasts: bool) -> torch.dtype:
    """The dtype of matrix products in training; ``autocasts``: the model knows any but float32."""
    if not autocasts:
        return torch.float32
    if config.dtype == "auto":
        return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
    return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32


def pick_compile(config: TrainConfig, device: torch.device, pays: bool) -> bool:
    """Whether to compile the training step; ``pays``: the model has something to gain."""
    if config.compile != "auto":
        return config.compile == "yes"
    if not pays:
        return False
    # Documents come in many lengths, and each shape is compiled anew.
    if platform.system() == "Windows" or device.type == "mps" or config.loader == "documents":
        return False
    if device.type == "cpu" and not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        return False
    return config.max_time is not None and config.max_time >= COMPILE_PAYS_AFTER


def memory_of(device: torch.device) -> float | None:
    """Gigabytes of memory that a device has, where that can be told."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 1e9
    held = memory()
    return None if held is None else held / 1e9


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy there, if it isn't there yet, without waiting for what the device is doing."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        # Only from pinned memory are copies asynchronous.
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def random_state(device: torch.device) -> dict[str, Any]:
    """Where the generators are that a model on the device draws from."""
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],
        "mps": [torch.mps.get_rng_state()] if device.type == "mps" else [],
    }


def restore_random(state: Mapping[str, Any], device: torch.device) -> None:
    """What ``random_state`` gave, on this device or another."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"][0], device)
    if state.get("mps") and device.type == "mps":
        torch.mps.set_rng_state(state["mps"][0])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = r"can't allocate memory|not enough memory|out of memory"
    return isinstance(error, RuntimeError) and re.search(said, str(error), re.IGNORECASE) is not None


def peak_memory(device: torch.device) -> int | None:
    """Bytes that tensors took at most on a CUDA device, or that this process has taken at most.

    None where the system doesn't say (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():
        # Unlike getrusage, this forgets what the process that started this one took.
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="ascii", errors="replace"))
        return int(found[1]) * 1024 if found else None
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def keep_compiled() -> None:
    """Have what is compiled kept in the user's cache folder, unless ``TORCHINDUCTOR_CACHE_DIR`` says
    otherwise: torch's own choice, a temporary folder, is gone after a restart."""
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return
    try:
        folder = cache_folder() / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return  # no home, or one that can't be written: torch's own choice will do
    if os.access(folder, os.W_OK):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
