"""Tokens after a prompt, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from makemore.models.base import LanguageModel
from makemore.sampling.decoder import make_decoder
from makemore.sampling.decoders.base import Ints
from makemore.sampling.logits import Noise, SampleParams, choose

Ends = Callable[[int, int], bool]


def generate(
    model: LanguageModel,
    prompt_BT: Ints,
    n: int,
    params: SampleParams,
    stop_ids: NDArray[np.int64] | None = None,
    seed: int = 0,
    samples: range | None = None,
    ends: Ends | None = None,
    fast: bool = True,
) -> Iterator[Ints]:
    """Yields ids (B,), up to ``n`` times; -1 in rows that ended before.

    ``prompt_BT``: int64, at least one token; one row for each sample, or one that all go on from.
    Rows are the ``samples`` (by default from 0) of ``seed``, each the same in any batch. A row ends
    with any of ``stop_ids``, or where ``ends(row, id)`` says so; ended rows leave the batch.
    ``fast=False``: by ``forward`` alone.
    """
    model.eval()
    samples = range(len(prompt_BT)) if samples is None else samples
    rows = len(samples)
    noise = Noise(seed, samples)
    decoder = make_decoder(model, prompt_BT, prompt_BT.shape[1] + n, fast)
    stops_V = _table(stop_ids, model.vocab_size)
    draws = decoder.draws and params.plain
    alive = np.arange(rows)
    logits_BV = decoder.start()
    if len(prompt_BT) < rows:
        decoder.keep(np.zeros(rows, np.int64))
        logits_BV = logits_BV.repeat(rows, axis=0)
    for step in range(n):
        ids = decoder.draw(noise.next()) if draws else choose(logits_BV, params, noise.next())
        if len(alive) == rows:
            yield ids
        else:
            out = np.full(rows, -1)
            out[alive] = ids
            yield out
        over = None if stops_V is None else stops_V[ids]
        if ends is not None:
            told = np.array(
                [ends(row, token) for row, token in zip(alive.tolist(), ids.tolist(), strict=True)]
            )
            over = told if over is None else over | told
        if over is not None and np.count_nonzero(over):
            going = np.flatnonzero(~over)
            if not len(going):
                return
            decoder.keep(going)
            noise.keep(going)
            alive, ids = alive[going], ids[going]
        if step < n - 1 and not draws:
            logits_BV = decoder.step(ids)


def _table(stop_ids: NDArray[np.int64] | None, vocab_size: int) -> NDArray[np.bool_] | None:
    if stop_ids is None or not len(stop_ids):
        return None
    stops_V = np.zeros(vocab_size, bool)
    stops_V[stop_ids] = True
    return stops_V
