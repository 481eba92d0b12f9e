"""Generate text from a run."""

from __future__ import annotations

import codecs
import reprlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from threading import Event

import numpy as np

from makemore.corpus.decoding import normalize_newlines
from makemore.errors import UserError
from makemore.models.base import LanguageModel
from makemore.runs.run import Run
from makemore.sampling import SampleParams, beam_search, generate
from makemore.sampling.beam import DEFAULT_LENGTH_PENALTY
from makemore.sampling.decoders import fast_decoder
from makemore.sampling.workers import MIN_SAMPLES_PER_THREAD, n_sampling_threads, run_in_threads
from makemore.settings.train import require_seed
from makemore.tokenizers.base import NEWLINE_HINT
from makemore.types import Ints

MAX_ROWS = 1024
MAX_STATE_BYTES = 1 << 28
"""Maximum size of the states of all rows together."""
DEFAULT_TEXT_TOKENS = 500


def random_seed() -> int:
    """Random seed, small enough to retype."""
    return secrets.randbelow(2**31)


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """Settings of a sampling request. Raises UserError for invalid values."""

    n: int = 10
    prompt: str = ""
    max_new_tokens: int | None = None
    params: SampleParams = field(default_factory=SampleParams)
    stop: str | None = None
    seed: int = 0
    skip_unknown: bool = False
    beam: int | None = None
    """Beam width; None to sample instead."""
    length_penalty: float = DEFAULT_LENGTH_PENALTY

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UserError(f"-n {self.n}: must be 1 or more")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise UserError(f"--max-new-tokens {self.max_new_tokens}: must be 1 or more")
        object.__setattr__(self, "prompt", normalize_newlines(self.prompt))
        if self.stop is not None:
            object.__setattr__(self, "stop", normalize_newlines(self.stop))
        require_seed(self.seed)
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
            raise UserError(f"-n {self.n}: {width} beams return at most {width} texts; raise --beam")
        if self.stop is not None or self.params != SampleParams():
            raise UserError("--beam can't be combined with --stop or sampling options; leave them out")


class TextStream:
    """Incrementally decode one sample's tokens into complete characters."""

    def __init__(self, run: Run, stop: str | None) -> None:
        self.run, self.stop = run, stop
        self.text = ""
        self.ended = False
        self._n_emitted = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """Add a token and return new text, holding back a possible start of the stop string."""
        if token == self.run.tokenizer.boundary_id:
            return ""
        before = len(self.text)
        piece = self._decoder.decode(self.run.tokenizer.decode_bytes([token]))
        if self.run.mode == "lines" and "\n" in piece:
            # Byte tokenizers can also end a line with a newline byte.
            piece, self.ended = piece.partition("\n")[0], True
        self.text += piece
        safe = len(self.text)
        if self.stop is not None:
            position = self.text.find(self.stop, max(0, before - len(self.stop)))
            if position >= 0:
                self.text, self.ended, safe = self.text[:position], True, position
            else:
                safe -= _overlap(self.text, self.stop)
        return self._emit(safe)

    def flush(self) -> str:
        """Return the text held back, once all tokens have been added."""
        if not self.ended:
            self.text += self._decoder.decode(b"", final=True)
        return self._emit(len(self.text))

    def _emit(self, end: int) -> str:
        piece = self.text[self._n_emitted : end]
        self._n_emitted = max(self._n_emitted, end)
        return piece


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of ``text`` that is a prefix of ``stop``."""
    sizes = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((n for n in sizes if text.endswith(stop[:n])), 0)


def normalize_prompt(run: Run, request: SampleRequest) -> str:
    """The prompt; in ``lines`` mode without a trailing newline."""
    return request.prompt.removesuffix("\n") if run.mode == "lines" else request.prompt


def context_ids(run: Run, request: SampleRequest) -> Ints:
    """Token ids (T,) that generation continues from.

    In ``lines`` mode they start with the boundary. In ``text`` mode an empty prompt is replaced by the end of
    the training text, stored with the run. Raises UserError if the tokenizer can't encode the prompt, or for
    a prompt of several lines in ``lines`` mode.
    """
    tokenizer, prompt = run.tokenizer, normalize_prompt(run, request)
    if run.mode == "lines" and "\n" in prompt:
        raise UserError("the prompt has several lines; this run generates single lines, so give only one")
    if request.skip_unknown:
        prompt = tokenizer.remove_unknown(prompt)
    ids = tokenizer.encode(prompt).astype(np.int64)
    if run.mode == "lines":
        return np.append(np.int64(tokenizer.boundary_id), ids)
    if len(ids):
        return ids
    training_tail = tokenizer.encode(run.config.text.context).astype(np.int64)
    limit = None if run.model.supports_streaming or not run.model.max_len else max(1, run.model.max_len // 2)
    return training_tail[-limit:] if limit else training_tail


def request_notes(run: Run, request: SampleRequest) -> list[str]:
    """Remarks on a prompt or stop string that was probably mistyped."""
    notes, stop = [], request.stop or ""
    if r"\n" in request.prompt + stop:
        notes.append(f"the prompt or stop string has a backslash and an n; {NEWLINE_HINT}")
    if run.tokenizer.unknown_chars(stop) or (run.mode == "lines" and "\n" in stop):
        notes.append(f"--stop can never match: this run doesn't generate {reprlib.repr(stop)}")
    return notes


def max_new_tokens_of(run: Run, request: SampleRequest) -> int:
    """Maximum number of new tokens per sample."""
    if request.max_new_tokens is not None:
        return request.max_new_tokens
    if run.mode == "text":
        return DEFAULT_TEXT_TOKENS
    return max(32, 4 * run.config.text.longest_document)


def end_token_ids(run: Run) -> Ints:
    """Ids that end a document: in ``lines`` mode, the boundary and all tokens with a newline."""
    if run.mode == "text":
        return np.zeros(0, np.int64)
    decode = run.tokenizer.decode_bytes
    return np.array([i for i in range(run.tokenizer.vocab_size) if b"\n" in decode([i])], np.int64)


def sample_batch_size(model: LanguageModel, capacity: int) -> int:
    """Number of samples to generate together, limited by memory and, where faster, by the CPU cache."""
    state_bytes = max(1, sum(part.numel() * part.element_size() for part in model.init_state(1, capacity)))
    rows = max(1, min(MAX_ROWS, MAX_STATE_BYTES // state_bytes))
    fast = fast_decoder(model) if model.device.type == "cpu" else None
    if fast is None or fast.cache_bytes is None:
        return rows
    return min(
        rows, max(MIN_SAMPLES_PER_THREAD, fast.cache_bytes // state_bytes) * n_sampling_threads(model, rows)
    )


def _steps(
    run: Run, request: SampleRequest, samples: range, streams: list[TextStream] | None = None
) -> Iterator[Ints]:
    """Token ids (B,) of each step, as ``generate`` yields them."""

    def has_ended(row: int, token: int) -> bool:
        return streams is not None and streams[row].ended

    return generate(
        run.model,
        context_ids(run, request)[None],
        max_new_tokens_of(run, request),
        request.params,
        end_token_ids(run),
        request.seed,
        samples,
        has_ended if request.stop is not None else None,
    )


def _decode(run: Run, ids: Ints) -> str:
    """Text of a complete sample."""
    text = run.tokenizer.decode(ids[(ids >= 0) & (ids != run.tokenizer.boundary_id)])
    return text.partition("\n")[0] if run.mode == "lines" else text


def _batch(run: Run, request: SampleRequest, samples: range, stopped: Event) -> list[str]:
    """Texts of these samples without the prompt; ends early once ``stopped`` is set."""
    if request.stop is None:
        steps = takewhile(lambda _: not stopped.is_set(), _steps(run, request, samples))
        ids_TB = np.stack([np.full(len(samples), -1), *steps])
        return [_decode(run, column) for column in ids_TB.T]
    streams = [TextStream(run, request.stop) for _ in samples]
    for ids_B in _steps(run, request, samples, streams):
        if stopped.is_set():
            break
        for stream, token in zip(streams, ids_B.tolist(), strict=True):
            if token >= 0:
                stream.push(token)
    for stream in streams:
        stream.flush()
    return [stream.text for stream in streams]


def _beam_texts(run: Run, request: SampleRequest, width: int) -> list[str]:
    prompt, n = context_ids(run, request), max_new_tokens_of(run, request)
    hypotheses = beam_search(
        run.model,
        prompt,
        n=n,
        width=width,
        length_penalty=request.length_penalty,
        stop_ids=end_token_ids(run),
    )
    return [_decode(run, np.array(h.ids, np.int64)) for h in hypotheses[: request.n]]


def sample(run: Run, request: SampleRequest, first: int = 0) -> Iterator[str]:
    """Yield ``n`` samples from number ``first`` on, with the prompt but without a final newline.

    Raises UserError for a prompt that doesn't fit the run.
    """
    prompt = normalize_prompt(run, request)
    if request.beam is not None:
        yield from (prompt + text for text in _beam_texts(run, request, request.beam))
        return
    batch_size = sample_batch_size(
        run.model, len(context_ids(run, request)) + max_new_tokens_of(run, request)
    )
    fast_decoder(run.model)  # builds and caches it before threads start
    for begin in range(first, first + request.n, batch_size):
        samples = range(begin, min(begin + batch_size, first + request.n))
        texts = run_in_threads(
            partial(_batch, run, request), samples, n_sampling_threads(run.model, len(samples))
        )
        yield from (prompt + text for text in texts)


def stream_text(run: Run, request: SampleRequest) -> Iterator[str]:
    """Yield one sample in pieces as it is generated, without the prompt. Raises UserError like ``sample``."""
    stream = TextStream(run, request.stop)
    for ids in _steps(run, request, range(1), [stream]):
        if piece := stream.push(int(ids[0])):
            yield piece
    if piece := stream.flush():
        yield piece
