"""Choose device and precision, decide whether to compile, query memory, save random states."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from makemore.errors import UserError
from makemore.runtime import distributed, process
from makemore.runtime.cachedir import cache_dir
from makemore.settings import TrainConfig

MIN_COMPILE_SECONDS = {"cpu": 75.0, "cuda": 45.0}
"""Minimum training seconds for compilation (cold, 16 to 30 s on a CPU, 11 to 19 s on CUDA) to pay off."""


def pick_device(name: str) -> torch.device:
    """Resolve a device name; ``auto`` prefers CUDA, then Apple's MPS, then the CPU. With several processes,
    each has one CUDA device; MPS is not used, because it cannot exchange gradients.

    Raises:
        UserError: the device is unknown or not on this machine.
    """
    cuda, is_distributed = torch.cuda.is_available(), distributed.world_size() > 1
    if is_distributed and (name == "cuda" or (name == "auto" and cuda)):
        name = f"cuda:{distributed.local_rank()}"
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if not is_distributed and has_mps() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}; known: auto, cpu, cuda, cuda:N, mps") from None
    if device.type == "cuda" and not cuda:
        raise UserError("--device cuda: no CUDA GPU found, or torch was built without CUDA; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= (n := torch.cuda.device_count()):
        raise UserError(f"--device {name}: found {n} CUDA device(s); use cuda:0 to cuda:{n - 1}, or cpu")
    if device.type == "cuda" and device.index is not None and is_distributed:
        if device.index != distributed.local_rank():
            raise UserError(f"--device {name}: each process has its own GPU; use --device cuda")
        torch.cuda.set_device(device)
    if device.type == "mps" and is_distributed:
        raise UserError("--device mps: MPS can't exchange gradients between processes; use --device cpu")
    if device.type == "mps" and not has_mps():
        raise UserError("--device mps: there is no Apple GPU that torch can use; use --device cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"unknown device {name!r}; known: auto, cpu, cuda, cuda:N, mps")
    return device


def has_mps() -> bool:
    """Whether there is an Apple GPU that can allocate memory; on a virtual Mac it can't."""
    if not torch.backends.mps.is_available():
        return False
    try:
        torch.zeros(1, device="mps")
    except RuntimeError:
        return False
    return True


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies matrices faster in bfloat16 than in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())
    return False


def pick_precision(config: TrainConfig, device: torch.device, supports_autocast: bool) -> torch.dtype:
    """Dtype of matrix products in training; ``supports_autocast``: the model supports lower precision."""
    if not supports_autocast:
        return torch.float32
    if config.runtime.dtype == "auto":
        return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
    return torch.bfloat16 if config.runtime.dtype == "bfloat16" else torch.float32


def should_compile(config: TrainConfig, device: torch.device, pays: bool) -> bool:
    """Whether to compile the training step; ``pays``: compiling makes the model faster."""
    if config.runtime.compile != "auto":
        return config.runtime.compile == "yes"
    if not pays:
        return False
    # Documents vary in length, and every new shape is recompiled.
    if platform.system() == "Windows" or device.type == "mps" or config.data.loader == "documents":
        return False
    if device.type == "cpu" and not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        return False
    return config.max_time is not None and config.max_time >= MIN_COMPILE_SECONDS[device.type]


def total_memory_gb(device: torch.device) -> float:
    """Memory of a device in gigabytes (1e9 bytes)."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 1e9
    return process.total_memory() / 1e9


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device, if it isn't there, without synchronising."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        # Only copies from pinned memory are asynchronous.
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def get_rng_state(device: torch.device) -> dict[str, Any]:
    """States of the random generators that a model on the device uses."""
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],
        "mps": [torch.mps.get_rng_state()] if device.type == "mps" else [],
    }


def set_rng_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Restore states that ``get_rng_state`` returned for this or another device."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"][0], device)
    if state.get("mps") and device.type == "mps":
        torch.mps.set_rng_state(state["mps"][0])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device or the machine is out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    pattern = r"can't allocate memory|not enough memory|out of memory"
    return isinstance(error, RuntimeError) and re.search(pattern, str(error), re.IGNORECASE) is not None


def peak_memory(device: torch.device) -> int | None:
    """Peak bytes of tensors on a CUDA device, else of this process; None if unknown."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else process.peak_memory()


def set_compile_cache_dir() -> None:
    """Keep compiled kernels in the user's cache folder, unless ``TORCHINDUCTOR_CACHE_DIR`` is set: torch's
    default is a temporary folder, which a restart deletes.
    """
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return
    try:
        folder = cache_dir() / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return  # no writable home: leave torch's default
    if os.access(folder, os.W_OK):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
