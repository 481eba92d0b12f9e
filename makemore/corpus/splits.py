"""Encode documents to tokens: in memory for small texts, in an on-disk cache for large ones."""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from makemore.corpus.arrays import ArrayWriter, read_arrays
from makemore.corpus.cache import Cache, cache_key
from makemore.corpus.documents import SPLITS, Digest, Documents, make_documents
from makemore.corpus.mode import Mode
from makemore.corpus.text import MAX_IN_MEMORY_BYTES, Text
from makemore.settings import CorpusConfig
from makemore.tokenizers import TOKENIZERS, fit_tokenizer, tokenizer_from_dict
from makemore.tokenizers.base import Tokenizer
from makemore.types import DocumentEnds, Split

CACHE_VERSION = 3
"""Version of the cached arrays; a new version invalidates older entries."""
CONTEXT_CHARS = 256
THREADS = min(8, os.cpu_count() or 1)

Progress = Callable[[int, int], None]
"""Called with the number of characters encoded so far and in total."""


@dataclass(frozen=True)
class Corpus:
    """A text ready for training: tokenizer, encoded splits, and facts about its documents."""

    mode: Mode
    reason: str
    """Reason for the choice of mode, for display."""
    fractions: tuple[float, float, float]
    blank_lines: int
    capped: bool
    """Val and test were limited to ``MAX_HELD_OUT``."""
    digests: dict[str, str]
    """sha256 of each split's documents."""
    context: str
    """End of the training text, the context that samples continue (``text`` mode)."""
    tokenizer: Tokenizer
    splits: dict[str, Split]
    train_lines: Callable[[], Iterator[list[str]]]
    """Iterates over the training documents as strings, in blocks."""
    notes: tuple[str, ...] = ()
    """One-line notes for the user."""

    @property
    def document_ends(self) -> DocumentEnds:
        return "never" if self.mode == "text" else "nonempty"

    def split(self, name: str) -> Split:
        """``train``, ``val``, ``test``, or several joined by ``+``, concatenated."""
        if name in self.splits:
            return self.splits[name]
        return _concatenate(name, [self.splits[part] for part in name.split("+")], self.mode)


def make_corpus(
    text: Text, config: CorpusConfig, tokenizer: str | Tokenizer, progress: Progress | None = None
) -> Corpus:
    """Split and encode a text; ``tokenizer``: a fitted one, or a spec such as ``bpe:512`` to fit.

    Raises UserError if the text is too short, the disk is full, or the tokenizer can't encode the text.
    """
    if text.size > MAX_IN_MEMORY_BYTES:
        return _from_cache(text, config, tokenizer, progress)
    documents = make_documents(text, config)
    fitted = tokenizer if isinstance(tokenizer, Tokenizer) else _fit(documents, tokenizer)
    writer = ArrayWriter(None)
    metadata = _encode_splits(documents, fitted, writer, progress)
    return _build_corpus(metadata, fitted, writer.finish(), lambda: documents)


def encode_documents(
    name: str,
    parts: Iterable[list[str]],
    mode: Mode,
    tokenizer: Tokenizer,
    seen: Container[str] | None = None,
) -> Split:
    """Encode blocks of documents as one split; in ``text`` mode, pieces of one document.

    Characters that the tokenizer can't encode are dropped and counted. ``seen``: lines that also occur
    in train.
    """
    writer = ArrayWriter(None)
    _write(writer, name, _encode_in_threads(parts, mode, tokenizer, seen))
    return _make_split(name, mode, writer.finish())


def _write(writer: ArrayWriter, name: str, encoded: Iterable[dict[str, np.ndarray]]) -> None:
    for part in encoded:
        for key, values in part.items():
            writer.append(f"{name}-{key}", values)


def _fit(documents: Documents, spec: str) -> Tokenizer:
    if TOKENIZERS.get(spec.partition(":")[0]).fits_all_splits:
        return fit_tokenizer(spec, documents.pieces(SPLITS, line_end=""))
    return fit_tokenizer(spec, documents.pieces(("train",), line_end="\n"))


def _encode(
    documents: list[str], mode: Mode, tokenizer: Tokenizer, seen: Container[str] | None
) -> dict[str, np.ndarray]:
    """Tokens of documents, and each document's number of tokens, characters and bytes."""
    unknown_chars = tokenizer.unknown_chars("".join(documents))
    known = [tokenizer.remove_unknown(d) for d in documents] if unknown_chars else documents
    if mode == "lines":
        tokens = tokenizer.encode_lines(known)
        sizes = np.diff(np.flatnonzero(tokens == tokenizer.boundary_id), prepend=-1)
    else:
        pieces = [tokenizer.encode(text) for text in known]
        tokens = np.concatenate(pieces) if pieces else np.zeros(0, tokenizer.dtype)
        sizes = np.array([len(piece) for piece in pieces], np.int64)
    end = int(mode == "lines")
    encoded = {
        "tokens": tokens.astype(tokenizer.dtype, copy=False),
        "sizes": sizes,
        "chars": np.array([len(d) + end for d in documents], np.int64),
        "bytes": np.array([len(d.encode()) + end for d in documents], np.int64),
        "unknown_chars": np.array([len(d) - len(s) for d, s in zip(documents, known, strict=True)], np.int64),
    }
    if seen is not None:
        encoded["seen"] = np.array([d in seen for d in documents], bool)
    return encoded


def _make_split(name: str, mode: Mode, arrays: dict[str, np.ndarray]) -> Split:
    """Build a split from the arrays that start with its name."""
    tokens, sizes, chars, size, unknown = (
        arrays.get(f"{name}-{key}", np.zeros(0, np.int64))
        for key in ("tokens", "sizes", "chars", "bytes", "unknown_chars")
    )
    ends = np.cumsum(sizes)
    split = Split(
        name=name,
        tokens_N=tokens,
        starts_D=ends - sizes,
        chars_D=chars,
        bytes_D=size,
        in_train_D=arrays.get(f"{name}-seen"),
        unknown_chars_D=unknown if unknown.any() else None,
    )
    return split if mode == "lines" else _as_one_document(split)


def _as_one_document(split: Split) -> Split:
    unknown = split.unknown_chars_D
    return dataclasses.replace(
        split,
        starts_D=split.starts_D[:1],
        chars_D=split.chars_D.sum(keepdims=True)[: len(split.starts_D)],
        bytes_D=split.bytes_D.sum(keepdims=True)[: len(split.starts_D)],
        unknown_chars_D=None if unknown is None else unknown.sum(keepdims=True),
    )


def _concatenate(name: str, splits: list[Split], mode: Mode) -> Split:
    """Concatenate splits; in ``text`` mode into one document."""
    shift = np.cumsum([0, *(len(split.tokens_N) for split in splits)])
    unknown = [split.unknown_chars_D for split in splits]
    seen = [split.in_train_D for split in splits if split.in_train_D is not None]
    zeros = [np.zeros(len(split.starts_D), np.int64) for split in splits]
    joined = Split(
        name,
        np.concatenate([split.tokens_N for split in splits]),
        np.concatenate([split.starts_D + at for split, at in zip(splits, shift[:-1], strict=True)]),
        np.concatenate([split.chars_D for split in splits]),
        np.concatenate([split.bytes_D for split in splits]),
        np.concatenate(seen) if len(seen) == len(splits) else None,
        np.concatenate([z if x is None else x for x, z in zip(unknown, zeros, strict=True)])
        if any(x is not None for x in unknown)
        else None,
    )
    return joined if mode == "lines" else _as_one_document(joined)


def _encode_in_threads(
    parts: Iterable[list[str]], mode: Mode, tokenizer: Tokenizer, seen: Container[str] | None
) -> Iterator[dict[str, np.ndarray]]:
    """Encode parts in threads, a few at a time, and yield results in order; encoders release the GIL."""
    pending: deque[Future[dict[str, np.ndarray]]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for part in parts:
            pending.append(pool.submit(_encode, part, mode, tokenizer, seen))
            if len(pending) > THREADS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _encode_splits(
    documents: Documents, tokenizer: Tokenizer, writer: ArrayWriter, progress: Progress | None
) -> dict[str, Any]:
    """Write the arrays of all splits and return the corpus's metadata."""
    mode, done, digests = documents.mode, 0, {}
    # To mark lines of val and test that also occur in train, collect them while encoding train.
    held_out = ("val", "test") if mode == "lines" else ()
    held_out_lines = {line for split in held_out for lines in documents.read(split) for line in lines}
    seen: set[str] = set()

    def read(name: str, digest: Digest) -> Iterator[list[str]]:
        nonlocal done
        for part in documents.read(name):
            digest.add(part)
            if name == "train" and held_out_lines:
                seen.update(held_out_lines.intersection(part))
            yield part
            done += sum(map(len, part))
            if progress is not None:
                progress(done, documents.text.chars)

    for name in SPLITS:
        digest = Digest(mode)
        known = seen if name in held_out else None
        _write(writer, name, _encode_in_threads(read(name, digest), mode, tokenizer, known))
        digests[name] = digest.hex()
    return {
        "mode": mode,
        "reason": documents.reason,
        "fractions": documents.fractions,
        "blank_lines": documents.blank_lines,
        "capped": documents.capped,
        "digests": digests,
        "context": _final_context(documents) if mode == "text" else "",
    }


def _final_context(documents: Documents) -> str:
    """The end of the training text, up to its last newline if that is nearby."""
    tail = documents.tail("train", 2 * CONTEXT_CHARS)
    end = tail.rfind("\n") + 1
    return tail[:end][-CONTEXT_CHARS:] if end > CONTEXT_CHARS // 4 else tail[-CONTEXT_CHARS:]


def _build_corpus(
    metadata: dict[str, Any],
    tokenizer: Tokenizer,
    arrays: dict[str, np.ndarray],
    documents: Callable[[], Documents],
    notes: tuple[str, ...] = (),
) -> Corpus:
    return Corpus(
        **{**metadata, "fractions": tuple(metadata["fractions"])},
        tokenizer=tokenizer,
        splits={name: _make_split(name, metadata["mode"], arrays) for name in SPLITS},
        train_lines=lambda: documents().read("train"),
        notes=notes,
    )


def _from_cache(
    text: Text, config: CorpusConfig, tokenizer: str | Tokenizer, progress: Progress | None
) -> Corpus:
    """``make_corpus`` with the tokenizer and the encoded splits cached."""
    cache = Cache("corpora")
    text_key = [CACHE_VERSION, text.digest, config.mode, config.split, config.dedupe]
    documents: list[Documents] = []

    def split() -> Documents:
        if not documents:
            documents.append(make_documents(text, config))
        return documents[0]

    if isinstance(tokenizer, str):
        spec = tokenizer
        _, state = cache.get_or_build(
            cache_key("tokenizer", *text_key, spec), lambda _: _state(_fit(split(), spec))
        )
        tokenizer = tokenizer_from_dict(state["tokenizer"])
        tokenizer.note = state["note"]
    fitted = tokenizer

    def build(folder: Path) -> dict[str, Any]:
        writer = ArrayWriter(folder)
        try:
            metadata = _encode_splits(split(), fitted, writer, progress)
        finally:
            writer.close()
        return {**metadata, "arrays": writer.shapes}

    folder, metadata = cache.get_or_build(cache_key("corpus", *text_key, fitted.to_dict()), build)
    shapes = {name: (dtype, length) for name, (dtype, length) in metadata.pop("arrays").items()}
    return _build_corpus(
        metadata, fitted, read_arrays(folder, shapes), split, (cache.note,) if cache.note else ()
    )


def _state(tokenizer: Tokenizer) -> dict[str, Any]:
    return {"tokenizer": tokenizer.to_dict(), "note": tokenizer.note}
