"""How sure a model was of each token of a text, and what else it thought of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from makemore.sampling import SampleParams, distribution, entropy_bits
from makemore.sampling.decoder import make_decoder
from makemore.sampling.generate import generate
from makemore.sampling.text import SampleRequest, context, line_ends, new_tokens

if TYPE_CHECKING:
    from makemore.runs.run import Run

ALTERNATIVES = 5


@dataclass(frozen=True)
class TokenProb:
    """A token of a sample under the model's own distribution, whatever it was drawn from."""

    text: str
    p: float
    entropy: float
    """Of the distribution, in bits."""
    top: list[tuple[str, float]]
    """The likeliest tokens, most likely first."""

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        top = [{"token": text, "p": p} for text, p in self.top]
        return {"token": self.text, "p": self.p, "entropy": self.entropy, "top": top}


def sample_with_probs(run: Run, request: SampleRequest, index: int) -> list[TokenProb]:
    """Sample ``index`` of a request token by token, the one that ends a line included.

    A stop string is searched for in whole tokens: the last one may reach beyond it.
    """
    prompt = context(run, request)
    ids = _drawn(run, request, prompt, index)
    decoder = make_decoder(run.model, prompt[None], len(prompt) + len(ids))
    logits = decoder.start()
    tokens = []
    for step, token in enumerate(ids):
        tokens.append(_token_prob(run, distribution(logits, SampleParams())[0], token))
        if step < len(ids) - 1:
            logits = decoder.step(np.array([token]))
    return tokens


def _drawn(run: Run, request: SampleRequest, prompt: NDArray[np.int64], index: int) -> list[int]:
    ids: list[int] = []

    def ends(row: int, token: int) -> bool:
        return request.stop is not None and request.stop in run.tokenizer.decode(ids)

    n, stops = new_tokens(run, request), line_ends(run)
    samples = range(index, index + 1)
    steps = generate(run.model, prompt[None], n, request.params, stops, request.seed, samples, ends)
    for step in steps:
        ids.append(int(step[0]))
    return ids


def _token_prob(run: Run, p_V: NDArray[np.float64], token: int) -> TokenProb:
    best = np.argsort(-p_V, kind="stable")[:ALTERNATIVES].tolist()
    return TokenProb(
        run.tokenizer.decode([token]),
        float(p_V[token]),
        entropy_bits(p_V),
        [(run.tokenizer.decode([i]), float(p_V[i])) for i in best if p_V[i] > 0],
    )
