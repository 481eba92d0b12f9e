"""Documents to tokens: in memory where they are few, else once for all, in a cache on disk."""

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
from makemore.corpus.cache import Cache, key_of
from makemore.corpus.documents import SPLITS, Digest, Documents, Mode, make_documents, unsplit
from makemore.corpus.text import IN_MEMORY, Text
from makemore.settings import CorpusConfig
from makemore.tokenizers import TOKENIZERS, fit_tokenizer, tokenizer_from_dict
from makemore.tokenizers.base import Tokenizer
from makemore.types import Split

FORMAT = 1
"""Of what the cache holds; another one is made anew."""
CONTEXT_CHARS = 256
THREADS = min(8, os.cpu_count() or 1)

Progress = Callable[[int, int], None]
"""Told how many bytes of the text are encoded, and of how many."""


@dataclass(frozen=True)
class Corpus:
    """A text ready for training: its tokenizer, its splits as tokens, what is known of its documents."""

    mode: Mode
    reason: str
    """Why this mode, in words."""
    shares: tuple[float, float, float]
    blank_lines: int
    capped: bool
    """Val and test have less than their shares, which are large enough."""
    digests: dict[str, str]
    """sha256 of each split's documents."""
    context: str
    """The end of the training text (``text`` mode): what samples go on from."""
    tokenizer: Tokenizer
    splits: dict[str, Split]
    train_lines: Callable[[], Iterator[list[str]]]
    """Reads the training documents as text, some at a time."""
    note: str = ""
    """One line worth telling the user."""

    def split(self, name: str) -> Split:
        """``train``, ``val``, ``test`` or several joined by ``+``, one after the other."""
        if name in self.splits:
            return self.splits[name]
        return _joined(name, [self.splits[part] for part in name.split("+")], self.mode)


def make_corpus(
    text: Text, config: CorpusConfig, tokenizer: str | Tokenizer, progress: Progress | None = None
) -> Corpus:
    """Split and encode a text; ``tokenizer``: a fitted one, or how one to fit is spelled.

    Raises UserError where there is too little text, no room, or the tokenizer is unfit.
    """
    if text.size > IN_MEMORY:
        return _from_cache(text, config, tokenizer, progress)
    documents = make_documents(text, config)
    fitted = tokenizer if isinstance(tokenizer, Tokenizer) else _fit(documents, tokenizer)
    encoder = Encoder(documents, fitted, ArrayWriter(None), progress)
    said = encoder.run()
    return _corpus(said, fitted, encoder.writer.finish(), lambda: documents)


def encode_whole(
    text: Text, name: str, mode: Mode, tokenizer: Tokenizer, seen: Container[str] | None = None
) -> Split:
    """A text that isn't split, as tokens; ``seen``: lines that stand in train."""
    documents = unsplit(text, name, mode)
    return encode_documents(name, documents.read(name), mode, tokenizer, seen)


def encode_documents(
    name: str,
    parts: Iterable[list[str]],
    mode: Mode,
    tokenizer: Tokenizer,
    seen: Container[str] | None = None,
) -> Split:
    """A split of documents, which come some at a time; in ``text`` mode they are pieces of one.

    What the tokenizer can't spell is left out of the tokens and counted. ``seen``: lines that stand in
    train.
    """
    writer = ArrayWriter(None)
    _write(writer, name, parts, mode, tokenizer, seen)
    return _split(name, mode, writer.finish())


def _write(
    writer: ArrayWriter,
    name: str,
    parts: Iterable[list[str]],
    mode: Mode,
    tokenizer: Tokenizer,
    seen: Container[str] | None,
) -> None:
    for part in _in_threads(lambda documents: _encode(documents, mode, tokenizer, seen), parts):
        for key, values in part.items():
            writer.append(f"{name}-{key}", values)


def _fit(documents: Documents, spec: str) -> Tokenizer:
    if TOKENIZERS.get(spec.partition(":")[0]).whole_text:
        return fit_tokenizer(spec, documents.pieces(SPLITS, line_end=""))
    return fit_tokenizer(spec, documents.pieces(("train",), line_end="\n"))


def _encode(
    documents: list[str], mode: Mode, tokenizer: Tokenizer, seen: Container[str] | None
) -> dict[str, np.ndarray]:
    """Tokens of some documents, and of each how many tokens, characters and bytes it has."""
    unknown = tokenizer.unspellable("".join(documents))
    spelled = [tokenizer.without_unspellable(d) for d in documents] if unknown else documents
    if mode == "lines":
        tokens = tokenizer.encode_lines(spelled)
        sizes = np.diff(np.flatnonzero(tokens == tokenizer.boundary_id), prepend=-1)
    else:
        pieces = [tokenizer.encode(text) for text in spelled]
        tokens = np.concatenate(pieces) if pieces else np.zeros(0, tokenizer.dtype)
        sizes = np.array([len(piece) for piece in pieces], np.int64)
    end = int(mode == "lines")
    encoded = {
        "tokens": tokens.astype(tokenizer.dtype, copy=False),
        "sizes": sizes,
        "chars": np.array([len(d) + end for d in documents], np.int64),
        "bytes": np.array([len(d.encode()) + end for d in documents], np.int64),
        "lost": np.array([len(d) - len(s) for d, s in zip(documents, spelled, strict=True)], np.int64),
    }
    if seen is not None:
        encoded["seen"] = np.array([d in seen for d in documents], bool)
    return encoded


def _split(name: str, mode: Mode, arrays: dict[str, np.ndarray]) -> Split:
    """The split of a name among arrays of all."""
    tokens, sizes, chars, size, lost = (
        arrays.get(f"{name}-{key}", np.zeros(0, np.int64))
        for key in ("tokens", "sizes", "chars", "bytes", "lost")
    )
    ends = np.cumsum(sizes)
    split = Split(
        name=name,
        tokens_N=tokens,
        starts_D=ends - sizes,
        chars_D=chars,
        bytes_D=size,
        seen_D=arrays.get(f"{name}-seen"),
        unspellable_D=lost if lost.any() else None,
    )
    return split if mode == "lines" else _one_document(split)


def _one_document(split: Split) -> Split:
    """Its documents as one."""
    lost = split.unspellable_D
    return dataclasses.replace(
        split,
        starts_D=split.starts_D[:1],
        chars_D=split.chars_D.sum(keepdims=True)[: len(split.starts_D)],
        bytes_D=split.bytes_D.sum(keepdims=True)[: len(split.starts_D)],
        unspellable_D=None if lost is None else lost.sum(keepdims=True),
    )


def _joined(name: str, splits: list[Split], mode: Mode) -> Split:
    """Splits one after the other; in ``text`` mode as one document."""
    shift = np.cumsum([0, *(len(split.tokens_N) for split in splits)])
    lost = [split.unspellable_D for split in splits]
    seen = [split.seen_D for split in splits if split.seen_D is not None]
    none = [np.zeros(len(split.starts_D), np.int64) for split in splits]
    both = Split(
        name,
        np.concatenate([split.tokens_N for split in splits]),
        np.concatenate([split.starts_D + at for split, at in zip(splits, shift[:-1], strict=True)]),
        np.concatenate([split.chars_D for split in splits]),
        np.concatenate([split.bytes_D for split in splits]),
        np.concatenate(seen) if len(seen) == len(splits) else None,
        np.concatenate([z if x is None else x for x, z in zip(lost, none, strict=True)])
        if any(x is not None for x in lost)
        else None,
    )
    return both if mode == "lines" else _one_document(both)


def _in_threads(
    work: Callable[[list[str]], dict[str, np.ndarray]], parts: Iterable[list[str]]
) -> Iterator[dict[str, np.ndarray]]:
    """Results in order, a few parts at a time: encoders let go of Python's lock."""
    waiting: deque[Future[dict[str, np.ndarray]]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for part in parts:
            waiting.append(pool.submit(work, part))
            if len(waiting) > THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class Encoder:
    """Encodes all splits of a text, one after the other."""

    def __init__(
        self, documents: Documents, tokenizer: Tokenizer, writer: ArrayWriter, progress: Progress | None
    ) -> None:
        self.documents, self.tokenizer, self.writer = documents, tokenizer, writer
        self.progress, self._done = progress, 0
        # Lines of val and test that stand in train: those seen while train goes by.
        held_out = ("val", "test") if documents.mode == "lines" else ()
        self._held_out = {line for split in held_out for lines in documents.read(split) for line in lines}
        self._seen: set[str] = set()

    def run(self) -> dict[str, Any]:
        """Write all arrays; returns what else there is to say of the corpus."""
        documents = self.documents
        digests = {}
        for name in SPLITS:
            digest = Digest(documents.mode)
            seen = self._seen if documents.mode == "lines" and name != "train" else None
            _write(self.writer, name, self._passing(name, digest), documents.mode, self.tokenizer, seen)
            digests[name] = digest.hex()
        return {
            "mode": documents.mode,
            "reason": documents.reason,
            "shares": list(documents.shares),
            "blank_lines": documents.blank_lines,
            "capped": documents.capped,
            "digests": digests,
            "context": _last_lines(documents) if documents.mode == "text" else "",
        }

    def _passing(self, name: str, digest: Digest) -> Iterator[list[str]]:
        for documents in self.documents.read(name):
            digest.add(documents)
            if name == "train" and self._held_out:
                self._seen.update(self._held_out.intersection(documents))
            yield documents
            self._done += sum(map(len, documents))
            if self.progress is not None:
                self.progress(self._done, self.documents.text.chars)


def _last_lines(documents: Documents) -> str:
    """The end of the training text, up to its last line end if it has one nearby."""
    tail = documents.tail("train", 2 * CONTEXT_CHARS)
    end = tail.rfind("\n") + 1
    return tail[:end][-CONTEXT_CHARS:] if end > CONTEXT_CHARS // 4 else tail[-CONTEXT_CHARS:]


def _corpus(
    said: dict[str, Any],
    tokenizer: Tokenizer,
    arrays: dict[str, np.ndarray],
    documents: Callable[[], Documents],
    note: str = "",
) -> Corpus:
    splits = {name: _split(name, said["mode"], arrays) for name in SPLITS}
    shares = (said["shares"][0], said["shares"][1], said["shares"][2])
    return Corpus(
        **{**said, "shares": shares},
        tokenizer=tokenizer,
        splits=splits,
        train_lines=lambda: documents().read("train"),
        note=note,
    )


def _from_cache(
    text: Text, config: CorpusConfig, tokenizer: str | Tokenizer, progress: Progress | None
) -> Corpus:
    """As ``make_corpus``, every step of it only where it hasn't been done before."""
    cache = Cache("corpora")
    of_text = [FORMAT, text.digest, config.mode, config.split, config.dedupe]
    documents: list[Documents] = []

    def cut() -> Documents:
        if not documents:
            documents.append(make_documents(text, config))
        return documents[0]

    if isinstance(tokenizer, str):
        spec = tokenizer
        _, saved = cache.make(key_of("tokenizer", *of_text, spec), lambda _: _saved(_fit(cut(), spec)))
        tokenizer = tokenizer_from_dict(saved["tokenizer"])
        tokenizer.note = saved["note"]
    fitted = tokenizer

    def build(folder: Path) -> dict[str, Any]:
        writer = ArrayWriter(folder)
        try:
            said = Encoder(cut(), fitted, writer, progress).run()
        finally:
            writer.close()
        return {**said, "arrays": writer.shapes}

    folder, said = cache.make(key_of("corpus", *of_text, fitted.to_dict()), build)
    shapes = {name: (kind, length) for name, (kind, length) in said.pop("arrays").items()}
    return _corpus(said, fitted, read_arrays(folder, shapes), cut, cache.note)


def _saved(tokenizer: Tokenizer) -> dict[str, Any]:
    return {"tokenizer": tokenizer.to_dict(), "note": tokenizer.note}
