"""Text from a run: the prompt in, samples or pieces of text out."""

from __future__ import annotations

import codecs
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from threading import Event
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from makemore.errors import UserError
from makemore.models.base import LanguageModel
from makemore.sampling import SampleParams, beam_search, generate
from makemore.sampling.decoders import fast_decoder
from makemore.sampling.workers import FEWEST, share, threads

if TYPE_CHECKING:
    from makemore.runs.run import Run

MOST_ROWS = 1024
STATE_BYTES = 1 << 28
"""Of the states of all rows together."""
DEFAULT_TEXT_TOKENS = 500
DEFAULT_LENGTH_PENALTY = 0.6
"""As Wu et al. 2016 found best for translation."""


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
    beam: int | None = None
    """Search for the likeliest texts with this many beams, rather than draw."""
    length_penalty: float = DEFAULT_LENGTH_PENALTY

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UserError(f"-n {self.n}: must be 1 or more")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise UserError(f"--max-new-tokens {self.max_new_tokens}: must be 1 or more")
        if self.stop == "":
            raise UserError("--stop '': give at least one character")
        if self.length_penalty < 0:
            raise UserError(f"--length-penalty {self.length_penalty:g}: must be 0 or more")
        if self.beam is not None:
            self._check_beam(self.beam)

    def _check_beam(self, width: int) -> None:
        if width < 1:
            raise UserError(f"--beam {width}: must be 1 or more")
        if self.n > width:
            raise UserError(f"-n {self.n}: {width} beams find at most {width} texts; raise --beam")
        if self.stop is not None or self.params != SampleParams():
            raise UserError("--beam searches the model's own distribution; leave out --stop and what draws")


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
        if token == self.run.tokenizer.boundary_id:
            return ""
        before = len(self.text)
        piece = self._decoder.decode(self.run.tokenizer.decode_bytes([token]))
        if self.run.mode == "lines" and "\n" in piece:
            # Tokenizers of bytes spell the line's end in a second way.
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


def shown_prompt(run: Run, request: SampleRequest) -> str:
    """The prompt as the run's documents are: line ends as newlines, a line without its own."""
    prompt = request.prompt.replace("\r\n", "\n")
    return prompt.removesuffix("\n") if run.mode == "lines" else prompt


def context(run: Run, request: SampleRequest) -> NDArray[np.int64]:
    """The tokens (T,) that generation goes on from.

    A line begins at the boundary. Running text doesn't begin anew: without a prompt it goes on
    after the end of the training text, kept with the run. Raises UserError for a prompt that the
    tokenizer can't spell, or of several lines where documents are lines.
    """
    tokenizer, prompt = run.tokenizer, shown_prompt(run, request)
    if run.mode == "lines" and "\n" in prompt:
        raise UserError("a prompt is the beginning of one line; this run's documents are single lines")
    if request.skip_unknown:
        prompt = tokenizer.without_unspellable(prompt)
    ids = tokenizer.encode(prompt).astype(np.int64)
    if run.mode == "lines":
        return np.append(np.int64(tokenizer.boundary_id), ids)
    if len(ids):
        return ids
    before = tokenizer.encode(run.config["corpus"]["context"]).astype(np.int64)
    limit = None if run.model.streams or not run.model.max_len else max(1, run.model.max_len // 2)
    return before[-limit:] if limit else before


def new_tokens(run: Run, request: SampleRequest) -> int:
    """The longest a sample may become."""
    if request.max_new_tokens is not None:
        return request.max_new_tokens
    if run.mode == "text":
        return DEFAULT_TEXT_TOKENS
    return max(32, 4 * int(run.config["corpus"]["longest_document"]))


def line_ends(run: Run) -> NDArray[np.int64]:
    """Tokens that end a document: the boundary, and others that hold a newline, in ``lines`` mode."""
    if run.mode == "text":
        return np.zeros(0, np.int64)
    decode = run.tokenizer.decode_bytes
    return np.array([i for i in range(run.tokenizer.vocab_size) if b"\n" in decode([i])], np.int64)


def rows_at_once(model: LanguageModel, capacity: int) -> int:
    """Samples to make together, by all threads: as many as memory has room for, up to a thousand, but no
    more than caches hold where a step is fastest so."""
    size = max(1, sum(part.numel() * part.element_size() for part in model.init_state(1, capacity)))
    rows = max(1, min(MOST_ROWS, STATE_BYTES // size))
    stepper = fast_decoder(model) if model.device.type == "cpu" else None
    if stepper is None or stepper.cached is None:
        return rows
    return min(rows, max(FEWEST, stepper.cached // size) * threads(model, rows))


def _steps(
    run: Run, request: SampleRequest, samples: range, streams: list[TextStream] | None = None
) -> Iterator[NDArray[np.int64]]:
    """Steps of ids for these samples, as ``generate`` yields them."""

    def ended(row: int, token: int) -> bool:
        return streams is not None and streams[row].ended

    return generate(
        run.model,
        context(run, request)[None],
        new_tokens(run, request),
        request.params,
        line_ends(run),
        request.seed,
        samples,
        ended if request.stop is not None else None,
    )


def _whole(run: Run, ids: NDArray[np.int64]) -> str:
    """A sample's text from all its tokens."""
    text = run.tokenizer.decode(ids[(ids >= 0) & (ids != run.tokenizer.boundary_id)])
    return text.partition("\n")[0] if run.mode == "lines" else text


def _batch(run: Run, request: SampleRequest, samples: range, over: Event) -> list[str]:
    """The texts of these samples, without their prompt; unfinished once it's over."""
    if request.stop is None:
        steps = takewhile(lambda _: not over.is_set(), _steps(run, request, samples))
        ids_TB = np.stack([np.full(len(samples), -1), *steps])
        return [_whole(run, column) for column in ids_TB.T]
    streams = [TextStream(run, request.stop) for _ in samples]
    for ids_B in _steps(run, request, samples, streams):
        if over.is_set():
            break
        for stream, token in zip(streams, ids_B.tolist(), strict=True):
            if token >= 0:
                stream.push(token)
    for stream in streams:
        stream.flush()
    return [stream.text for stream in streams]


def _found(run: Run, request: SampleRequest, width: int) -> list[str]:
    prompt, n = context(run, request), new_tokens(run, request)
    found = beam_search(run.model, prompt, n, width, request.length_penalty, line_ends(run))
    return [_whole(run, np.array(h.ids, np.int64)) for h in found[: request.n]]


def sample(run: Run, request: SampleRequest, first: int = 0) -> Iterator[str]:
    """Samples ``first`` to ``first + n``, prompt included; in ``lines`` mode without the line's end.

    Raises UserError for a prompt that doesn't fit the run.
    """
    prompt = shown_prompt(run, request)
    if request.beam is not None:
        yield from (prompt + text for text in _found(run, request, request.beam))
        return
    at_once = rows_at_once(run.model, len(context(run, request)) + new_tokens(run, request))
    fast_decoder(run.model)  # what it keeps for the next is made once, before there are threads
    for begin in range(first, first + request.n, at_once):
        samples = range(begin, min(begin + at_once, first + request.n))
        made = share(partial(_batch, run, request), samples, threads(run.model, len(samples)))
        yield from (prompt + text for text in made)


def stream_text(run: Run, request: SampleRequest) -> Iterator[str]:
    """One sample, piece by piece as it is made, without the prompt. Raises UserError as ``sample``."""
    stream = TextStream(run, request.stop)
    for ids in _steps(run, request, range(1), [stream]):
        if piece := stream.push(int(ids[0])):
            yield piece
    if piece := stream.flush():
        yield piece
