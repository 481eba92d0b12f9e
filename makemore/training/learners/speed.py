"""Measure this machine's training speed, from which recipes estimate how often a budget covers the text."""

from __future__ import annotations

import time
from functools import lru_cache

import torch

from makemore.models.base import LanguageModel
from makemore.runtime.device import pick_precision
from makemore.settings import ModelConfig, Recipe, TrainConfig
from makemore.training.learners import make_learner
from makemore.training.plan import pick_native
from makemore.types import Batch

SECONDS = 0.5
MAX_VOCABULARY = 8192
"""Largest vocabulary that is measured, to limit the memory."""


def measure_speed(kind: type[LanguageModel], recipe: Recipe, vocab_size: int) -> float:
    """Tokens per second of training steps on the CPU with a recipe's settings, on random tokens.

    Measured once per process and settings. Leaves torch's random state as it was.
    """
    return _measure(kind, recipe.model, recipe.train, min(vocab_size, MAX_VOCABULARY))


@lru_cache
def _measure(
    kind: type[LanguageModel], model_config: ModelConfig, train: TrainConfig, vocab_size: int
) -> float:
    device, data = torch.device("cpu"), train.data
    with torch.random.fork_rng(devices=[]):
        model = kind(model_config, vocab_size, 0)
        model.one_document_per_row = data.loader in ("windows", "documents")
        precision = pick_precision(train, device, model.supports_autocast)
        native = pick_native(model, train, device, precision)
        learner = make_learner(model, train, precision=precision, compiled=False, native=native)
        rows = max(1, data.batch_tokens // data.block_size)
        inputs_BT, targets_BT = torch.randint(1, max(vocab_size, 2), (2, rows, data.block_size))
        batch = Batch(inputs_BT, targets_BT, continues=False)
        learner.step([batch], 0, 0.0)  # the first step allocates memory
        started, steps = time.perf_counter(), 0
        while (seconds := time.perf_counter() - started) < SECONDS:
            learner.step([batch], steps, 0.0)
            steps += 1
    return steps * inputs_BT.numel() / seconds
