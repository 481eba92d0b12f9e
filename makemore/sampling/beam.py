"""Beam search: the likeliest texts, rather than a draw."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from makemore.models.base import LanguageModel
from makemore.sampling.decoder import make_decoder
from makemore.sampling.decoders.base import Ints
from makemore.sampling.logits import SampleParams, distribution


class Hypothesis(NamedTuple):
    """A text that was found."""

    ids: list[int]
    """Without the token that ended it."""
    log_prob: float
    """In nats, of all of it, the end included."""
    score: float
    """``log_prob`` less what the length explains."""


def length_factor(length: int, exponent: float) -> float:
    """What log-probabilities are divided by, ((5 + length) / 6) ** exponent (Wu et al. 2016, "Google's
    Neural Machine Translation System", equation 14)."""
    return ((5 + length) / 6) ** exponent


def beam_search(
    model: LanguageModel,
    prompt_T: Ints,
    n: int,
    width: int,
    length_penalty: float = 0.6,
    stop_ids: Ints | None = None,
) -> list[Hypothesis]:
    """The ``width`` best continuations of up to ``n`` tokens, best first.

    In each step the ``width`` likeliest of all beams' continuations go on; those that end with one of
    ``stop_ids`` are put aside. The search is over when nothing that goes on can pass the worst of
    ``width`` that ended, or after ``n`` tokens.
    """
    model.eval()
    stops = np.array([], np.int64) if stop_ids is None else stop_ids
    decoder = make_decoder(model, prompt_T[None], len(prompt_T) + n)
    logits_BV = decoder.start()
    beams: list[list[int]] = [[]]
    totals_B = np.zeros(1)
    found: list[Hypothesis] = []
    longest = length_factor(n, length_penalty)
    for step in range(1, n + 1):
        with np.errstate(divide="ignore"):
            joint_BV = totals_B[:, None] + np.log(distribution(logits_BV, SampleParams()))
        factor = length_factor(step, length_penalty)
        rows, ids = _best(joint_BV, width * (1 + max(1, len(stops))))
        over = np.isin(ids, stops)
        for row, token in zip(rows[over][:width].tolist(), ids[over][:width].tolist(), strict=True):
            total = float(joint_BV[row, token])
            found.append(Hypothesis(beams[row], total, total / factor))
        found = sorted(found, key=lambda h: -h.score)[:width]
        rows, ids = rows[~over][:width], ids[~over][:width]
        if not len(rows):
            return found
        totals_B = joint_BV[rows, ids]
        beams = [[*beams[row], token] for row, token in zip(rows.tolist(), ids.tolist(), strict=True)]
        # The best that a beam may still come to: every further token certain.
        if len(found) == width and found[-1].score >= totals_B.max() / longest:
            return found
        if step < n:
            decoder.keep(rows)
            logits_BV = decoder.step(ids)
    factor = length_factor(n, length_penalty)
    cut = [Hypothesis(beam, float(t), float(t) / factor) for beam, t in zip(beams, totals_B, strict=True)]
    return sorted([*found, *cut], key=lambda h: -h.score)[:width]


def _best(joint_BV: np.ndarray, count: int) -> tuple[Ints, Ints]:
    """Rows and tokens of the ``count`` largest finite entries, largest first."""
    flat = joint_BV.ravel()
    count = min(count, int(np.isfinite(flat).sum()))
    top = np.argsort(-flat, kind="stable")[:count]
    return np.divmod(top, joint_BV.shape[1])
