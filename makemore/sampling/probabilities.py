"""Token probabilities of a sample, with the most probable alternatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from makemore.runs.run import Run
from makemore.sampling import SampleParams, distribution, entropy_bits
from makemore.sampling.decoder import make_decoder
from makemore.sampling.generate import generate
from makemore.sampling.text import SampleRequest, context_ids, end_token_ids, max_new_tokens_of
from makemore.types import Floats, Ints

ALTERNATIVES = 5


@dataclass(frozen=True)
class TokenProb:
    """A token's probability under the model itself, without the sampling settings."""

    text: str
    p: float
    entropy: float
    """Entropy of the distribution, in bits."""
    top: list[tuple[str, float]]
    """The most probable tokens, best first."""

    def as_dict(self) -> dict[str, Any]:
        top = [{"token": text, "p": p} for text, p in self.top]
        return {"token": self.text, "p": self.p, "entropy": self.entropy, "top": top}


def sample_with_probs(run: Run, request: SampleRequest, index: int) -> list[TokenProb]:
    """Probabilities of sample ``index``, token by token, including the token that ends a line.

    A stop string is matched in whole tokens: the last token may extend beyond it.
    """
    prompt = context_ids(run, request)
    ids = _sample_ids(run, request, prompt, index)
    decoder = make_decoder(run.model, prompt[None], len(prompt) + len(ids))
    logits = decoder.start()
    tokens = []
    for step, token in enumerate(ids):
        tokens.append(_token_prob(run, distribution(logits, SampleParams())[0], token))
        if step < len(ids) - 1:
            logits = decoder.step(np.array([token]))
    return tokens


def _sample_ids(run: Run, request: SampleRequest, prompt: Ints, index: int) -> list[int]:
    ids: list[int] = []

    def hits_stop(row: int, token: int) -> bool:
        return request.stop is not None and request.stop in run.tokenizer.decode(ids)

    n, stops = max_new_tokens_of(run, request), end_token_ids(run)
    samples = range(index, index + 1)
    steps = generate(run.model, prompt[None], n, request.params, stops, request.seed, samples, hits_stop)
    for step in steps:
        ids.append(int(step[0]))
    return ids


def _token_prob(run: Run, p_V: Floats, token: int) -> TokenProb:
    top = np.argsort(-p_V, kind="stable")[:ALTERNATIVES].tolist()
    return TokenProb(
        run.tokenizer.token_text(token),
        float(p_V[token]),
        entropy_bits(p_V),
        [(run.tokenizer.token_text(i), float(p_V[i])) for i in top if p_V[i] > 0],
    )
