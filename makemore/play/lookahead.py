"""What a model thinks of a text that is being written: its tokens, and what may come next."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from makemore.sampling import SampleParams, distribution, entropy_bits
from makemore.sampling.decoder import make_decoder
from makemore.sampling.text import SampleRequest, context, line_ends

if TYPE_CHECKING:
    from makemore.runs.run import Run

MOST_SHOWN = 60
"""Candidates that are told of a large vocabulary."""
MOST_TOKENS = 300
"""Tokens of a long text that are looked at one by one: its last ones."""


@dataclass(frozen=True)
class Seen:
    """A token of the text, and how probable it was there; None where the model was not asked."""

    text: str
    p: float | None


@dataclass(frozen=True)
class Candidate:
    """A token that may come next."""

    text: str
    p: float
    """The model's own probability."""
    drawn: float
    """The probability with which these sampling settings draw it."""
    ends: bool = False
    """It ends the document."""


@dataclass(frozen=True)
class Look:
    """A text as a model sees it. ``candidates`` are of the place ``at``: so many tokens stand before it."""

    tokens: list[Seen]
    earlier: str
    """The text before ``tokens``, where it is too long to look at each of its tokens."""
    at: int
    before: str
    """The text before ``at``; half a character at its end is left out."""
    candidates: list[Candidate]
    entropy: float
    """Of the distribution at ``at``, in bits."""
    left_out: str
    """Characters that the model has no token for."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def look(run: Run, text: str, params: SampleParams | None = None, at: int | None = None) -> Look:
    """How probable each token of a text was, and what the model expects at ``at`` (its end unless given).

    In ``lines`` mode a text is the beginning of one line: its last.
    """
    lines = run.mode == "lines"
    if lines:
        text = text.rpartition("\n")[2]
    spelled = run.tokenizer.without_unspellable(text)
    ids = context(run, SampleRequest(prompt=spelled))
    begin = int(lines) if spelled else len(ids)
    first = max(begin, len(ids) - MOST_TOKENS)
    # Nothing is asked of the first token of a running text: nothing stands before it.
    unasked = int(first == 0)
    logits_NV = _logits(run, ids, first + unasked)
    p_NV = distribution(logits_NV, SampleParams())
    tokens = [
        Seen(run.tokenizer.decode([token]), float(p_NV[i - unasked, token]) if i >= unasked else None)
        for i, token in enumerate(ids[first:].tolist())
    ]
    at = len(tokens) if at is None else max(unasked, min(at, len(tokens)))
    p_V = p_NV[at - unasked]
    drawn_V = distribution(logits_NV[at - unasked][None], params or SampleParams())[0]
    return Look(
        tokens,
        run.tokenizer.decode(ids[begin:first]),
        at,
        # All at once: a character may be several tokens, which are nothing one by one.
        run.tokenizer.decode_bytes(ids[begin : first + at]).decode(errors="ignore"),
        _candidates(run, p_V, drawn_V),
        entropy_bits(p_V),
        "".join(sorted(run.tokenizer.unspellable(text))),
    )


def _logits(run: Run, ids: NDArray[np.int64], first: int) -> NDArray[np.float64]:
    """(N, V) after the first ``first`` tokens, and after each that follows them."""
    decoder = make_decoder(run.model, ids[None, :first], len(ids) + 1)
    found = [decoder.start()[0].astype(np.float64)]
    found += [decoder.step(token[None])[0].astype(np.float64) for token in ids[first:]]
    return np.stack(found)


def _candidates(run: Run, p_V: NDArray[np.float64], drawn_V: NDArray[np.float64]) -> list[Candidate]:
    """The likeliest tokens, the most likely first."""
    ends = set(line_ends(run).tolist())
    best = np.argsort(-p_V, kind="stable")[:MOST_SHOWN].tolist()
    return [
        Candidate(run.tokenizer.decode([i]), float(p_V[i]), float(drawn_V[i]), i in ends)
        for i in best
        if i != run.tokenizer.boundary_id or run.mode == "lines"
    ]
