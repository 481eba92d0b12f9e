"""Sample lines that are not in the training split."""

from __future__ import annotations

from collections.abc import Iterator

from makemore.errors import UserError
from makemore.runs.run import Run
from makemore.runs.training_lines import train_lines
from makemore.sampling.text import SampleRequest, sample

MAX_TRIES_PER_SAMPLE = 100
"""Samples tried per requested one before giving up."""


def sample_novel(run: Run, request: SampleRequest) -> Iterator[str]:
    """Like ``sample``, but yield ``n`` lines that aren't in the training split.

    Raises UserError, after the new lines found so far, if too few samples are new.
    """
    seen = train_lines(run)
    n_left = request.n
    for first in range(0, MAX_TRIES_PER_SAMPLE * request.n, request.n):
        for text in sample(run, request, first):
            if n_left and text not in seen:
                yield text
                n_left -= 1
        if not n_left:
            return
    raise UserError(
        f"only {request.n - n_left} of {MAX_TRIES_PER_SAMPLE * request.n} samples were new; lower -n "
        "or raise --temperature"
    )
