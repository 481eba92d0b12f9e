"""Inspect a model's predictions on a text: each token's probability, and candidates for the next token."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from makemore.evaluation.adaptive import Reader, learned, prompt_split
from makemore.models.base import LanguageModel
from makemore.runs.run import Run
from makemore.sampling import SampleParams, distribution, entropy_bits
from makemore.sampling.decoder import make_decoder
from makemore.sampling.text import SampleRequest, context_ids, end_token_ids
from makemore.types import Floats, Ints

MAX_CANDIDATES = 60
"""Maximum number of candidates returned."""
MAX_SCORED_TOKENS = 300
"""Maximum number of tokens scored, from the end of the text."""
MAX_LEARNED_TOKENS = 2000
"""Maximum number of tokens that a model learns from, from the end of the text."""


@dataclass(frozen=True)
class ScoredToken:
    """A token of the text; ``p``: its probability, or None for a first token without context."""

    text: str
    p: float | None


@dataclass(frozen=True)
class Candidate:
    """A possible next token."""

    text: str
    p: float
    """Probability under the model."""
    sampling_p: float
    """Probability under the sampling settings."""
    ends: bool = False
    """Whether it ends the document."""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """A model's predictions on a text; ``candidates`` follow its first ``at`` tokens."""

    tokens: list[ScoredToken]
    earlier: str
    """The unscored text before ``tokens``, if the text is too long to score all of it."""
    at: int
    before: str
    """The text before ``at``, without an incomplete character at its end."""
    candidates: list[Candidate]
    entropy: float
    """Entropy of the next-token distribution at ``at``, in bits."""
    left_out: str
    """Characters the tokenizer can't encode."""


def predict(
    run: Run,
    text: str,
    params: SampleParams | None = None,
    at: int | None = None,
    reader: Reader | None = None,
) -> Predictions:
    """Score each token of a text and predict the token at index ``at`` (default: the end).

    In ``lines`` mode only the last line is used. With a reader of the run, the model learns from each token
    once it has predicted it.
    """
    lines = run.mode == "lines"
    if lines:
        text = text.rpartition("\n")[2]
    encodable = run.tokenizer.remove_unknown(text)
    ids = context_ids(run, SampleRequest(prompt=encodable))
    start = int(lines) if encodable else len(ids)
    first = max(start, len(ids) - MAX_SCORED_TOKENS)
    # The first token of running text has no context to predict it from.
    n_unscored = int(first == 0)
    n_tokens = len(ids) - first
    at = n_tokens if at is None else max(n_unscored, min(at, n_tokens))
    end = first + at
    if reader is None:
        logits_NV = _logits(run.model, ids, first + n_unscored)
        p_NV = distribution(logits_NV, SampleParams())
        p_N = p_NV[np.arange(n_tokens - n_unscored), ids[first + n_unscored :]]
        logits_V, p_V = logits_NV[at - n_unscored], p_NV[at - n_unscored]
    else:
        p_all = _adaptive_probabilities(reader, ids)
        p_N = p_all[len(p_all) - n_tokens + n_unscored :]
        logits_V = _logits(learn_from(run, reader, ids[:end]).model, ids[:end], end)[0]
        p_V = distribution(logits_V[None], SampleParams())[0]
    probabilities = [*[None] * n_unscored, *p_N.tolist()]
    tokens = [
        ScoredToken(run.tokenizer.decode([token]), p)
        for token, p in zip(ids[first:].tolist(), probabilities, strict=True)
    ]
    sampling_p_V = distribution(logits_V[None], params or SampleParams())[0]
    return Predictions(
        tokens=tokens,
        earlier=run.tokenizer.decode(ids[start:first]),
        at=at,
        # Decoded together: one character may take several tokens.
        before=run.tokenizer.decode_bytes(ids[start:end]).decode(errors="ignore"),
        candidates=_candidates(run, p_V, sampling_p_V),
        entropy=entropy_bits(p_V),
        left_out="".join(sorted(run.tokenizer.unknown_chars(text))),
    )


def learn_from(run: Run, reader: Reader, ids: Ints) -> Run:
    """The run with a copy of its model that has learned from the end of a text."""
    return replace(run, model=learned(reader, ids[-MAX_LEARNED_TOKENS:]))


def _adaptive_probabilities(reader: Reader, ids: Ints) -> Floats:
    """Probabilities of the last MAX_LEARNED_TOKENS tokens, without the boundary."""
    split = prompt_split(ids[-MAX_LEARNED_TOKENS:], reader.model.boundary_id)
    return np.exp(-reader.read(split).nats_N) if len(split.tokens_N) else np.zeros(0)


def _logits(model: LanguageModel, ids: Ints, first: int) -> Floats:
    """Next-token logits after the first ``first`` tokens and after each later one, (N, V)."""
    decoder = make_decoder(model, ids[None, :first], len(ids) + 1)
    logits = [decoder.start()[0].astype(np.float64)]
    logits += [decoder.step(token[None])[0].astype(np.float64) for token in ids[first:]]
    return np.stack(logits)


def _candidates(run: Run, p_V: Floats, sampling_p_V: Floats) -> list[Candidate]:
    """The most probable tokens, best first."""
    ends = set(end_token_ids(run).tolist())
    top = np.argsort(-p_V, kind="stable")[:MAX_CANDIDATES].tolist()
    return [
        Candidate(run.tokenizer.decode([i]), float(p_V[i]), float(sampling_p_V[i]), i in ends)
        for i in top
        if i != run.tokenizer.boundary_id or run.mode == "lines"
    ]
