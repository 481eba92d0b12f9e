"""Baselines for a score: a count model of the same text, and the uniform distribution.

A score says little by itself: on a short text a neural network is often worse than n-gram counts, which take
a second, or even than guessing.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from makemore.corpus.loader import OrderedLoader
from makemore.evaluation.parts import beginning
from makemore.evaluation.scoring import UNKNOWN_CHAR_NATS, Progress
from makemore.models.count import Count
from makemore.models.smoothing import CountConfig
from makemore.tokenizers.base import Tokenizer
from makemore.types import Score, Split

MAX_TOKENS = 1 << 20
"""Tokens of a split that the baseline reads: it then takes at most about two seconds and 0.2 GB."""
MAX_ORDERS = ((1 << 19, 12), (MAX_TOKENS, 8))
"""(tokens, order): maximum order of the count model for at most this many training tokens."""
BATCH_TOKENS = 1 << 16
NEAR_UNIFORM = 0.95
"""A loss above this fraction of ln V, the loss of the uniform distribution, shows hardly any learning."""
WORSE = 1.01
"""A loss above this multiple of the count model's loss is worse; smaller differences may be chance."""
SMALL_TEXT = 20_000
"""Training tokens below which more training is unlikely to help."""


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Loss of a count model with the order that is best on val."""

    nll: float
    """Nats per token."""
    order: int
    limited_to: str
    """The part of train or val that was read; empty if all of it was."""

    def as_dict(self) -> dict[str, Any]:
        return {"model": "count", **asdict(self)}


def count_baseline(train: Split, val: Split, tokenizer: Tokenizer, progress: Progress) -> Baseline:
    """Fit a count model to (the beginning of) train and score it on (the beginning of) val.

    ``progress`` is called after each batch and may raise an exception to stop.
    """
    cut = [split.name for split in (train, val) if len(split.tokens_N) > MAX_TOKENS]
    train, val = (beginning(split, MAX_TOKENS, tokenizer) for split in (train, val))
    boundary_id = tokenizer.boundary_id
    n_train = len(train.tokens_N)
    max_order = next(order for limit, order in MAX_ORDERS if n_train <= limit)
    model = Count(CountConfig(max_order=max_order), tokenizer.vocab_size, boundary_id)
    done = 0
    for batch in OrderedLoader(train, boundary_id, BATCH_TOKENS):
        model.count_batch(batch)
        done += batch.targets_BT.numel()
        progress(min(done, n_train), n_train)
    order, nll = model.best_order(OrderedLoader(val, boundary_id, BATCH_TOKENS))
    return Baseline(
        nll=nll,
        order=order,
        limited_to=f"the first {MAX_TOKENS:,} tokens of {' and '.join(cut)}" if cut else "",
    )


def uniform_nll(score: Score, vocab_size: int) -> float:
    """Nats per token on the scored text if every token had the same probability."""
    nats = score.tokens * math.log(vocab_size) + score.unknown_chars * UNKNOWN_CHAR_NATS
    return nats / (score.tokens + score.unknown_chars)


def is_near_uniform(nll: float, uniform: float) -> bool:
    """Whether a loss shows that a model has learned hardly anything."""
    return nll > NEAR_UNIFORM * uniform


def remark(
    model: str,
    score: Score,
    *,
    uniform: float,
    train_tokens: int,
    baseline: Baseline | None = None,
    still_improving: bool = False,
    hardly_begun: bool = False,
) -> str:
    """Describe what is wrong with a trained model's score, and what to do.

    Args:
        model: Name of the model.
        score: Its score on val.
        uniform: Nats per token of the uniform distribution.
        train_tokens: Number of training tokens.
        baseline: Loss of a count model on the same text, if it is known.
        still_improving: Whether the last evaluation was the best one.
        hardly_begun: Whether the budget ended during warm-up, or before all of the text was counted.

    Returns:
        One line, or an empty string if the score beats the uniform distribution and the count model.
    """
    near_uniform = is_near_uniform(score.nll, uniform)
    if score.nll >= uniform:
        fault = f"worse than guessing: equal probabilities for all tokens have {uniform:.4f} nats/token"
    elif near_uniform:
        fault = f"hardly better than guessing: equal probabilities have {uniform:.4f} nats/token"
    elif baseline is not None and score.nll > WORSE * baseline.nll:
        fault = "worse than count"
    else:
        return ""
    if hardly_begun:
        advice = "training has hardly begun: raise --steps or --max-time"
    elif near_uniform and (baseline is None or is_near_uniform(baseline.nll, uniform)):
        advice = "the text is too short or too random to predict; use more text"
    elif train_tokens < SMALL_TEXT:
        advice = f"{train_tokens:,} tokens are too few to train it; use more text or --model count"
    elif still_improving:
        advice = "train longer, or use --model count"
    else:
        advice = "use --model count, a smaller model or more text"
    return f"{model} is {fault}; {advice}"
