"""Report whether a run is bit-for-bit reproducible."""

from __future__ import annotations

import torch

from makemore.settings import TrainConfig


def nondeterminism_reasons(train: TrainConfig, device: torch.device, compiled: bool) -> list[str]:
    """Reasons why the same seed may give different numbers on this machine; empty if there are none.

    torch's deterministic algorithms stay off: they are slower and lack some operations.
    """
    reasons = []
    if train.max_time is not None and train.optimizer.name != "none":  # counting is quick
        reasons.append("--max-time makes the number of steps depend on speed (use --steps instead)")
    if device.type != "cpu":
        reasons.append(f"{device.type} sums in no fixed order (use --device cpu)")
    if compiled:
        reasons.append("rounding in compiled code depends on the compiler and the machine (use --no-compile)")
    return reasons


def reproducibility_line(train: TrainConfig, device: torch.device, compiled: bool, threads: int) -> str:
    """Summarise in one line whether a run is reproducible, and why not."""
    if reasons := nondeterminism_reasons(train, device, compiled):
        return f"not bit-for-bit reproducible: {'; '.join(reasons)}"
    count = f"{threads} thread{'s' * (threads != 1)}"
    return f"bit-for-bit reproducible on this machine with seed {train.seed}, these versions and {count}"
