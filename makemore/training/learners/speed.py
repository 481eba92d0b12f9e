"""Measure this machine's training speed, from which recipes estimate how often a budget covers the text."""

from __future__ import annotations

import time

import torch

from makemore.models.base import LanguageModel
from makemore.runtime.device import is_out_of_memory, pick_precision
from makemore.settings import ModelConfig, TrainConfig
from makemore.training.learners import make_learner, pick_native
from makemore.training.learners.guard import NonFiniteError
from makemore.types import Batch

SECONDS = 0.5
MAX_VOCABULARY = 8192
"""Largest vocabulary that is measured, to limit the memory."""

measured_speeds: dict[str, float] = {}
"""Tokens per second, by model and settings. ``compare`` copies this dictionary from process to process, so
that all seeds get the same recipe."""


def measure_speed(
    kind: type[LanguageModel], model_config: ModelConfig, train: TrainConfig, vocab_size: int
) -> float | None:
    """Measure training steps on random tokens, on the CPU, once per process for each model and settings.

    Torch's random state doesn't change.

    Args:
        kind, model_config, train, vocab_size: The model and its settings.

    Returns:
        Tokens per second, or None for a vocabulary above MAX_VOCABULARY, or if a step runs out of memory or
        its loss isn't finite.
    """
    if vocab_size > MAX_VOCABULARY:
        return None
    settings = train.model_copy(update={"seed": 0, "max_time": None, "steps": None})
    key = f"{model_config!r} {settings!r} {vocab_size} {torch.get_num_threads()}"
    if key not in measured_speeds:
        try:
            with torch.random.fork_rng(devices=[]):
                measured_speeds[key] = _measure(kind, model_config, train, vocab_size)
        except (RuntimeError, MemoryError, NonFiniteError) as error:
            if not isinstance(error, NonFiniteError) and not is_out_of_memory(error):
                raise
            return None
    return measured_speeds[key]


def _measure(
    kind: type[LanguageModel], model_config: ModelConfig, train: TrainConfig, vocab_size: int
) -> float:
    device, data = torch.device("cpu"), train.data
    model = kind(model_config, vocab_size, 0)
    model.one_document_per_row = data.loader in ("windows", "documents")
    precision = pick_precision(train, device, model.supports_autocast)
    native = pick_native(model, train, device, precision)
    learner = make_learner(model, train, precision=precision, compiled=False, native=native)
    length = (
        min(data.block_size, model_config.block_size)
        if hasattr(model_config, "block_size")
        else data.block_size
    )
    rows = max(1, data.batch_tokens // length)
    inputs_BT, targets_BT = torch.randint(1, max(vocab_size, 2), (2, rows, length))
    batch = Batch(inputs_BT, targets_BT, continues=False)
    learner.step([batch], 0, 0.0)  # the first step allocates memory
    started, steps = time.perf_counter(), 0
    while (seconds := time.perf_counter() - started) < SECONDS:
        learner.step([batch], steps, 0.0)
        steps += 1
    return steps * inputs_BT.numel() / seconds
