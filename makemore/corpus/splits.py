"""Documents to tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from makemore.corpus.documents import Documents, Mode
from makemore.tokenizers.base import Tokenizer
from makemore.types import Split


def smallest_type(vocab_size: int) -> np.dtype:
    """The smallest unsigned integer type that holds every token."""
    return np.min_scalar_type(vocab_size - 1)


def encode_documents(
    name: str, documents: list[str], mode: Mode, tokenizer: Tokenizer, train: set[str] | None = None
) -> Split:
    """A split of documents. What the tokenizer can't spell is left out of the tokens and counted.

    ``train``: lines to look verbatim copies up in.
    """
    unknown = tokenizer.unspellable("".join(documents))
    spelled = [tokenizer.without_unspellable(d) for d in documents] if unknown else documents
    lost = np.array([len(d) - len(s) for d, s in zip(documents, spelled, strict=True)], np.int64)
    line_end = 1 if mode == "lines" else 0
    if line_end:
        tokens = tokenizer.encode_lines(spelled)
        ends = np.flatnonzero(tokens == tokenizer.boundary_id) + 1
        starts = np.concatenate([[0], ends[:-1]])
    else:
        pieces = [tokenizer.encode(s) for s in spelled]
        tokens = np.concatenate(pieces) if pieces else np.zeros(0, np.int64)
        starts = np.cumsum([0, *(len(p) for p in pieces[:-1])]) if pieces else np.zeros(0)
    return Split(
        name=name,
        tokens_N=tokens.astype(smallest_type(tokenizer.vocab_size)),
        starts_D=starts.astype(np.int64) if documents else np.zeros(0, np.int64),
        chars_D=np.array([len(d) + line_end for d in documents], np.int64),
        bytes_D=np.array([len(d.encode()) + line_end for d in documents], np.int64),
        seen_D=None if train is None else np.array([d in train for d in documents], bool),
        unspellable_D=lost if unknown else None,
    )


@dataclass(frozen=True)
class Corpus:
    """A text ready for training: its documents, its tokenizer, its splits as tokens."""

    documents: Documents
    tokenizer: Tokenizer
    splits: dict[str, Split]

    @property
    def mode(self) -> Mode:
        return self.documents.mode

    def split(self, name: str) -> Split:
        """``train``, ``val``, ``test`` or several joined by ``+``, one after the other."""
        if name in self.splits:
            return self.splits[name]
        parts = [d for part in name.split("+") for d in self.documents.parts[part]]
        joined = parts if self.mode == "lines" else ["".join(parts)]
        train = self._train_lines() if self.mode == "lines" and "train" not in name else None
        return encode_documents(name, joined, self.mode, self.tokenizer, train)

    def _train_lines(self) -> set[str]:
        return set(self.documents.parts["train"])


def make_corpus(documents: Documents, tokenizer: Tokenizer) -> Corpus:
    """Encode every split."""
    splits = {}
    train = set(documents.parts["train"]) if documents.mode == "lines" else None
    for name, parts in documents.parts.items():
        seen = None if name == "train" else train
        splits[name] = encode_documents(name, parts, documents.mode, tokenizer, seen)
    return Corpus(documents, tokenizer, splits)
