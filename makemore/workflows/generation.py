"""Text from a run: the prompt in, samples or pieces of text out."""

from __future__ import annotations

import codecs
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from makemore.errors import UserError
from makemore.sampling import SampleParams, generate
from makemore.workflows.runs import Run

ROWS_AT_ONCE = 256
DEFAULT_TEXT_TOKENS = 500


def random_seed() -> int:
    """A seed nobody chose, small enough to type again."""
    return secrets.randbelow(2**31)


@dataclass(frozen=True)
class SampleRequest:
    """What to sample. Raises UserError for values without meaning."""

    n: int = 10
    prompt: str = ""
    max_new_tokens: int | None = None
    params: SampleParams = field(default_factory=SampleParams)
    stop: str | None = None
    seed: int = 0
    skip_unknown: bool = False

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UserError(f"-n {self.n}: must be 1 or more")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise UserError(f"--max-new-tokens {self.max_new_tokens}: must be 1 or more")
        if self.stop == "":
            raise UserError("--stop '': give at least one character")


class TextStream:
    """Tokens of one sample to text, piece by piece, whole characters only."""

    def __init__(self, run: Run, stop: str | None) -> None:
        self.run, self.stop = run, stop
        self.text = ""
        self.ended = False
        self._shown = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """What can be shown now; what may yet turn out to begin the stop string is held back."""
        before = len(self.text)
        piece = self._decoder.decode(self.run.tokenizer.decode_bytes([token]))
        if self.run.mode == "lines" and "\n" in piece:
            # A tokenizer of bytes spells the line's end in a second way.
            piece, self.ended = piece.partition("\n")[0], True
        self.text += piece
        safe = len(self.text)
        if self.stop is not None:
            at = self.text.find(self.stop, max(0, before - len(self.stop)))
            if at >= 0:
                self.text, self.ended, safe = self.text[:at], True, at
            else:
                safe -= _overlap(self.text, self.stop)
        return self._show(safe)

    def flush(self) -> str:
        """What was held back, once nothing more will come."""
        if not self.ended:
            self.text += self._decoder.decode(b"", final=True)
        return self._show(len(self.text))

    def _show(self, end: int) -> str:
        piece = self.text[self._shown : end]
        self._shown = max(self._shown, end)
        return piece


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``stop``."""
    sizes = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((n for n in sizes if text.endswith(stop[:n])), 0)


def _prompt(run: Run, request: SampleRequest) -> str:
    """The prompt as the run's documents are: line ends as newlines, a line without its own."""
    prompt = request.prompt.replace("\r\n", "\n")
    return prompt.removesuffix("\n") if run.mode == "lines" else prompt


def _context(run: Run, request: SampleRequest) -> list[int]:
    """The tokens that generation goes on from.

    A line begins at the boundary. Running text doesn't begin anew: without a prompt it goes on
    after the end of the training text, kept with the run.
    """
    prompt = _prompt(run, request)
    if run.mode == "lines" and "\n" in prompt:
        raise UserError("a prompt is the beginning of one line; this run's documents are single lines")
    if request.skip_unknown:
        prompt = run.tokenizer.without_unspellable(prompt)
    ids = run.tokenizer.encode(prompt).tolist() if prompt else []
    if run.mode == "lines":
        return [run.tokenizer.boundary_id, *ids]
    if ids:
        return ids
    before = run.tokenizer.encode(run.config["corpus"]["context"]).tolist()
    limit = None if run.model.streams or not run.model.max_len else max(1, run.model.max_len // 2)
    return before[-limit:] if limit else before


def _new_tokens(run: Run, request: SampleRequest) -> int:
    if request.max_new_tokens is not None:
        return request.max_new_tokens
    if run.mode == "text":
        return DEFAULT_TEXT_TOKENS
    return max(32, 4 * int(run.config["corpus"]["longest_document"]))


def _rows(run: Run, request: SampleRequest, first: int, streams: list[TextStream]) -> Iterator[np.ndarray]:
    """Steps of ids for samples ``first`` onwards, as ``generate`` yields them."""
    context: Tensor = torch.tensor([_context(run, request)] * len(streams), dtype=torch.int64)
    stop_id = run.tokenizer.boundary_id if run.mode == "lines" else None

    def ends(row: int, token: int) -> bool:
        return streams[row].ended

    return generate(
        run.model,
        context,
        _new_tokens(run, request),
        request.params,
        stop_id,
        request.seed,
        first,
        ends if request.stop is not None or run.mode == "lines" else None,
    )


def sample(run: Run, request: SampleRequest) -> Iterator[str]:
    """``n`` samples, prompt included, in order; in ``lines`` mode without the line's end.

    Raises UserError for a prompt that the tokenizer can't spell.
    """
    boundary = run.tokenizer.boundary_id
    for first in range(0, request.n, ROWS_AT_ONCE):
        streams = [TextStream(run, request.stop) for _ in range(min(ROWS_AT_ONCE, request.n - first))]
        for ids in _rows(run, request, first, streams):
            for row, token in enumerate(ids.tolist()):
                if token >= 0 and token != boundary:
                    streams[row].push(token)
        for stream in streams:
            stream.flush()
            yield _prompt(run, request) + stream.text


def stream_text(run: Run, request: SampleRequest) -> Iterator[str]:
    """One sample, piece by piece as it is made, the prompt first."""
    stream = TextStream(run, request.stop)
    if prompt := _prompt(run, request):
        yield prompt
    for ids in _rows(run, request, 0, [stream]):
        if ids[0] != run.tokenizer.boundary_id and (piece := stream.push(int(ids[0]))):
            yield piece
    if piece := stream.flush():
        yield piece
