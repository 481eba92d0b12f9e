"""What keeps a run's numbers from being the same to the bit the next time."""

from __future__ import annotations

import torch

from makemore.settings import TrainConfig


def varies(train: TrainConfig, device: torch.device, compiled: bool) -> list[str]:
    """Why the same seed may come to other numbers on the same machine; empty where it can't.

    Nothing here is switched off: torch's deterministic algorithms cost time, and lack some operations.
    """
    reasons = []
    if train.max_time is not None:
        reasons.append("the clock says how many steps --max-time has room for (--steps doesn't ask it)")
    if device.type != "cpu":
        reasons.append(f"{device.type} adds up in any order (--device cpu has one)")
    if compiled:
        reasons.append("compiled code rounds as this compiler and machine have it (--no-compile doesn't)")
    return reasons


def repeats(train: TrainConfig, device: torch.device, compiled: bool, threads: int) -> str:
    """The same in one line."""
    if reasons := varies(train, device, compiled):
        return f"not repeatable to the bit: {'; '.join(reasons)}"
    count = f"{threads} thread{'s' * (threads != 1)}"
    return f"repeatable to the bit: seed {train.seed}, this machine, these versions, {count}"
