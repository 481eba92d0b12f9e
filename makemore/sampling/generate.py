"""Generate tokens from a prompt, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from makemore.models.base import LanguageModel
from makemore.sampling.decoder import make_decoder
from makemore.sampling.logits import RandomStreams, SampleParams, sample_tokens
from makemore.types import Ints

StopFn = Callable[[int, int], bool]


def generate(
    model: LanguageModel,
    prompt_BT: Ints,
    n: int,
    params: SampleParams,
    stop_ids: Ints | None = None,
    seed: int = 0,
    samples: range | None = None,
    ends: StopFn | None = None,
    fast: bool = True,
) -> Iterator[Ints]:
    """Yield token ids (B,) up to ``n`` times, with -1 in rows that have already ended.

    Args:
        prompt_BT: int64, at least one token; one row per sample, or one row shared by all samples.
        samples: sample numbers of ``seed`` (default: from 0); a sample is the same in any batch.
        stop_ids, ends: a row ends, and leaves the batch, with any of these ids or if ``ends(row, id)``.
        fast: False uses ``forward`` only, no fast decoder.
    """
    model.eval()
    samples = range(len(prompt_BT)) if samples is None else samples
    rows = len(samples)
    noise = RandomStreams(seed, samples)
    decoder = make_decoder(model, prompt_BT, prompt_BT.shape[1] + n, fast)
    stops_V = _stop_mask(stop_ids, model.vocab_size)
    decoder_samples = decoder.supports_sampling and params.is_unmodified
    active = np.arange(rows)
    logits_BV = decoder.start()
    if len(prompt_BT) < rows:
        decoder.select_rows(np.zeros(rows, np.int64))
        logits_BV = logits_BV.repeat(rows, axis=0)
    for step in range(n):
        ids = (
            decoder.sample(noise.next())
            if decoder_samples
            else sample_tokens(logits_BV, params, noise.next())
        )
        if len(active) == rows:
            yield ids
        else:
            out = np.full(rows, -1)
            out[active] = ids
            yield out
        ended = None if stops_V is None else stops_V[ids]
        if ends is not None:
            ended_by_callback = np.array(
                [ends(row, token) for row, token in zip(active.tolist(), ids.tolist(), strict=True)]
            )
            ended = ended_by_callback if ended is None else ended | ended_by_callback
        if ended is not None and np.count_nonzero(ended):
            remaining = np.flatnonzero(~ended)
            if not len(remaining):
                return
            decoder.select_rows(remaining)
            noise.select_rows(remaining)
            active, ids = active[remaining], ids[remaining]
        if step < n - 1 and not decoder_samples:
            logits_BV = decoder.step(ids)


def _stop_mask(stop_ids: Ints | None, vocab_size: int) -> NDArray[np.bool_] | None:
    if stop_ids is None or not len(stop_ids):
        return None
    stops_V = np.zeros(vocab_size, bool)
    stops_V[stop_ids] = True
    return stops_V
