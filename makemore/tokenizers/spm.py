"""SentencePiece models fitted to the text, made lossless: ``spm:512``, ``spm-unigram:512``.

Kudo & Richardson 2018; BPE after Sennrich et al. 2016, unigram after Kudo 2018. Text isn't normalised,
no space is prepended, and characters without a piece are encoded as bytes. SentencePiece still writes spaces
as U+2581, so that character is encoded as bytes, outside SentencePiece.
"""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, ClassVar, Self

import numpy as np
import sentencepiece

from makemore.errors import UserError
from makemore.tokenizers.base import PieceTokenizer, parse_vocab_size, size_note
from makemore.tokenizers.excerpt import excerpt

MIN_VOCAB_SIZE = 259
"""Smallest vocabulary: the boundary, SentencePiece's unknown piece, every byte, and one piece."""
EXCERPT_CHARS = 1 << 24
"""SentencePiece needs many times the text's size in memory to train."""
SPACE_MARK = "\u2581"
"""SentencePiece's mark for a space; in a text it is encoded as bytes, or it would decode to a space."""
REMOVED_CHARS = dict.fromkeys(map(ord, (SPACE_MARK, "\u2585", "\0")))
"""Removed before training: SentencePiece skips sentences that contain its own marks."""


class SentencePieceTokenizer(PieceTokenizer):
    """Ids 1 to 256 are the bytes, later ids the pieces. Id 0, SentencePiece's unknown piece, is never
    produced, because every character has bytes, and serves as the boundary."""

    kind: ClassVar[str]

    def __init__(self, model: bytes) -> None:
        """``model``: a serialised SentencePiece model. Raises ValueError if it is invalid."""
        self._model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            pieces = [self._processor.id_to_piece(i) for i in range(self._processor.vocab_size())]
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"not a SentencePiece model: {error}") from None
        if pieces[1:257] != [f"<0x{byte:02X}>" for byte in range(256)]:
            raise ValueError("the model has no pieces for bytes")
        self._pieces = [b"\n", *(bytes([byte]) for byte in range(256))]
        self._pieces += [piece.replace(SPACE_MARK, " ").encode() for piece in pieces[257:]]
        self.vocab_size = len(pieces)
        # Without spaces in the training text, no piece has them: SentencePiece would encode the mark's bytes.
        self._bytes_only = re.compile(f"([{SPACE_MARK}{'' if SPACE_MARK in pieces else ' '}])")

    @classmethod
    def fit(cls, pieces: Iterable[str], option: str) -> Self:
        size = parse_vocab_size(cls.name, option, MIN_VOCAB_SIZE)
        texts, note = excerpt((piece.translate(REMOVED_CHARS) for piece in pieces), EXCERPT_CHARS)
        tokenizer = cls(train_sentencepiece(texts, cls.kind, size))
        tokenizer.note = size_note(tokenizer.vocab_size, size, note)
        return tokenizer

    def encode(self, text: str) -> np.ndarray:
        parts = [np.zeros(0, self.dtype)]
        for i, part in enumerate(self._bytes_only.split(text)):
            ids = [1 + byte for byte in part.encode()] if i % 2 else self._processor.encode(part)
            parts.append(np.array(ids, self.dtype))
        return np.concatenate(parts)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "model": base64.b64encode(self._model).decode("ascii")}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        return cls(base64.b64decode(data["model"], validate=True))


class SentencePieceBPE(SentencePieceTokenizer):
    """SentencePiece BPE: pieces are merged by frequency."""

    name = "spm"
    kind = "bpe"


class SentencePieceUnigram(SentencePieceTokenizer):
    """SentencePiece unigram model: pieces and segmentation maximise likelihood."""

    name = "spm-unigram"
    kind = "unigram"


def train_sentencepiece(texts: list[str], kind: str, size: int) -> bytes:
    """Train a SentencePiece model of at most ``size`` pieces and return it serialised."""
    model = io.BytesIO()
    texts = keep_frequent_chars(texts, (size - MIN_VOCAB_SIZE) * 3 // 4 + 1)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type=kind,
            vocab_size=size,
            character_coverage=1.0,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            hard_vocab_limit=False,
            max_sentence_length=1 << 20,
            num_threads=4,  # fixed, because the order of summation decides ties
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(f"SentencePiece can't learn {size} {kind} pieces from this text: {error}") from None
    return model.getvalue()


def keep_frequent_chars(texts: list[str], most: int) -> list[str]:
    """Replace all but the ``most`` most frequent characters with spaces, to give them no piece."""
    counts = Counter[str]()
    for text in texts:
        counts.update(text)
    spaces = {ord(char): " " for char, _ in counts.most_common()[most:]}
    # SentencePiece refuses to train on an empty text.
    return [text.translate(spaces) for text in texts if text.strip()] or ["a"]
