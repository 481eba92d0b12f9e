"""Beam search for the most likely continuations."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from makemore.models.base import LanguageModel
from makemore.sampling.decoder import make_decoder
from makemore.sampling.logits import SampleParams, distribution
from makemore.types import Ints

DEFAULT_LENGTH_PENALTY = 0.6
"""Length-normalisation exponent; the best value in Wu et al. (2016)."""


class Hypothesis(NamedTuple):
    """A candidate continuation."""

    ids: list[int]
    """Token ids, without the stop token."""
    log_prob: float
    """Total in nats, including the stop token."""
    score: float
    """``log_prob`` divided by the length factor."""


def length_factor(length: int, exponent: float) -> float:
    """Divisor of log-probabilities, ((5 + length) / 6) ** exponent (Wu et al. 2016, "Google's Neural Machine
    Translation System", equation 14)."""
    return ((5 + length) / 6) ** exponent


def beam_search(
    model: LanguageModel,
    prompt_T: Ints,
    n: int,
    width: int,
    length_penalty: float = DEFAULT_LENGTH_PENALTY,
    stop_ids: Ints | None = None,
) -> list[Hypothesis]:
    """The ``width`` best continuations of up to ``n`` tokens, best first.

    Each step keeps the ``width`` most likely extensions of all beams; beams that end with one of ``stop_ids``
    are finished. The search stops when no beam can beat the worst of ``width`` finished beams, or after
    ``n`` tokens.
    """
    model.eval()
    stops = np.array([], np.int64) if stop_ids is None else stop_ids
    decoder = make_decoder(model, prompt_T[None], len(prompt_T) + n)
    logits_BV = decoder.start()
    beams: list[list[int]] = [[]]
    totals_B = np.zeros(1)
    finished: list[Hypothesis] = []
    max_factor = length_factor(n, length_penalty)
    for step in range(1, n + 1):
        with np.errstate(divide="ignore"):
            joint_BV = totals_B[:, None] + np.log(distribution(logits_BV, SampleParams()))
        factor = length_factor(step, length_penalty)
        rows, ids = _top_entries(joint_BV, width * (1 + max(1, len(stops))))
        is_stop = np.isin(ids, stops)
        for row, token in zip(rows[is_stop][:width].tolist(), ids[is_stop][:width].tolist(), strict=True):
            total = float(joint_BV[row, token])
            finished.append(Hypothesis(beams[row], total, total / factor))
        finished = sorted(finished, key=lambda h: -h.score)[:width]
        rows, ids = rows[~is_stop][:width], ids[~is_stop][:width]
        if not len(rows):
            return finished
        totals_B = joint_BV[rows, ids]
        beams = [[*beams[row], token] for row, token in zip(rows.tolist(), ids.tolist(), strict=True)]
        # Upper bound on what a beam can reach: every further token has probability 1.
        if len(finished) == width and finished[-1].score >= totals_B.max() / max_factor:
            return finished
        if step < n:
            decoder.select_rows(rows)
            logits_BV = decoder.step(ids)
    factor = length_factor(n, length_penalty)
    rest = [Hypothesis(beam, float(t), float(t) / factor) for beam, t in zip(beams, totals_B, strict=True)]
    return sorted([*finished, *rest], key=lambda h: -h.score)[:width]


def _top_entries(joint_BV: np.ndarray, n: int) -> tuple[Ints, Ints]:
    """Rows and tokens of the ``n`` largest finite entries, largest first."""
    flat = joint_BV.ravel()
    n = min(n, int(np.isfinite(flat).sum()))
    top = np.argsort(-flat, kind="stable")[:n]
    return np.divmod(top, joint_BV.shape[1])
