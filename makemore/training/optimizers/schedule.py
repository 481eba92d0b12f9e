"""The learning rate over the course of training."""

from __future__ import annotations

import math

from makemore.settings.train import ScheduleConfig


def lr_scale(config: ScheduleConfig, step: int, progress: float) -> float:
    """Learning rate as a fraction of its peak.

    Warm-up counts steps; decay follows ``progress``, the fraction of the budget (steps or time) used.
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.shape == "constant":
        return warmup
    if config.shape == "step":
        return warmup * 0.1 ** sum(progress >= milestone for milestone in config.milestone_fractions)
    if config.shape == "cosine":
        decay = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    elif config.warmdown_fraction:
        decay = min(1.0, max(0.0, (1 - progress) / config.warmdown_fraction))
    else:
        decay = 1.0
    return warmup * (config.final_lr_fraction + (1 - config.final_lr_fraction) * decay)
