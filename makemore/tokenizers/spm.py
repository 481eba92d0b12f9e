"""SentencePiece models trained on the text itself, made lossless: ``spm:512``, ``spm-unigram:512``.

Kudo & Richardson 2018; BPE after Sennrich et al. 2016, unigram after Kudo 2018. Nothing is
normalised, no blank is put in front, and what has no piece is spelled by its bytes. Whitespace is
the one thing SentencePiece rewrites, so a few characters change places before and after it.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import sentencepiece

from makemore.errors import UserError
from makemore.tokenizers.base import Tokenizer
from makemore.tokenizers.excerpt import excerpt

LEAST = 259
"""The boundary, SentencePiece's unknown piece, every byte, and one piece."""
MOST = 1 << 20
EXCERPT_CHARS = 1 << 24
"""SentencePiece holds many times its text in memory while it learns."""
BLANK = "\u2581"
"""How SentencePiece writes a blank. The character itself is spelled by its bytes, or it would come
back as one."""
NOT_LEARNED = dict.fromkeys(map(ord, (BLANK, "\u2585", "\0")))
"""SentencePiece passes over what contains its own marks."""


class SentencePieceTokenizer(Tokenizer):
    """Ids 1… 256 are the bytes, then pieces. Id 0 is SentencePiece's unknown piece, which bytes make
    needless: it is the boundary here."""

    kind: ClassVar[str]

    def __init__(self, model: bytes) -> None:
        """Raises ValueError where the bytes aren't a model of this kind."""
        self._model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            pieces = [self._processor.id_to_piece(i) for i in range(self._processor.vocab_size())]
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"not a SentencePiece model: {error}") from None
        if pieces[1:257] != [f"<0x{byte:02X}>" for byte in range(256)]:
            raise ValueError("the model has no pieces for bytes")
        self._pieces = [b"\n", *(bytes([byte]) for byte in range(256))]
        self._pieces += [piece.replace(BLANK, " ").encode() for piece in pieces[257:]]
        self.vocab_size = len(pieces)
        # A text without blanks leaves them without a piece; their bytes are then those of the sign for them.
        self._by_bytes = re.compile(f"([{BLANK}{'' if BLANK in pieces else ' '}])")

    @classmethod
    def fit(cls, pieces: Iterable[str], option: str) -> Self:
        if not (option.isascii() and option.isdecimal()) or not LEAST <= int(option) <= MOST:
            raise UserError(
                f"--tokenizer {cls.name}:{option}: give a size from {LEAST} to {MOST}, such as {cls.name}:512"
            )
        texts, note = excerpt((piece.translate(NOT_LEARNED) for piece in pieces), EXCERPT_CHARS)
        tokenizer = cls(learn(texts, cls.kind, int(option)))
        if tokenizer.vocab_size < int(option):
            note = f"the text supports {tokenizer.vocab_size:,} tokens, not {int(option):,}"
        tokenizer.note = note
        return tokenizer

    def encode(self, text: str) -> np.ndarray:
        parts = [np.zeros(0, self.dtype)]
        for i, part in enumerate(self._by_bytes.split(text)):
            ids = [1 + byte for byte in part.encode()] if i % 2 else self._processor.encode(part)
            parts.append(np.array(ids, self.dtype))
        return np.concatenate(parts)

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        return b"".join([self._pieces[i] for i in np.asarray(ids).tolist()])

    def token_bytes(self) -> np.ndarray:
        return np.array([len(piece) for piece in self._pieces], np.int64)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "model": base64.b64encode(self._model).decode("ascii")}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        try:
            return cls(base64.b64decode(data["model"], validate=True))
        except binascii.Error as error:
            raise ValueError(f"model: {error}") from None


class SentencePieceBPE(SentencePieceTokenizer):
    """Pieces merged by frequency."""

    name = "spm"
    kind = "bpe"


class SentencePieceUnigram(SentencePieceTokenizer):
    """Pieces chosen, and texts cut, by likelihood under a unigram model."""

    name = "spm-unigram"
    kind = "unigram"


def learn(texts: list[str], kind: str, size: int) -> bytes:
    """A model of at most ``size`` pieces, as SentencePiece writes it."""
    written = io.BytesIO()
    texts = frequent(texts, (size - LEAST) * 3 // 4 + 1)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=written,
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
            num_threads=4,  # a fixed number: sums over threads decide ties
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(f"SentencePiece can't learn {size} {kind} pieces from this text: {error}") from None
    return written.getvalue()


def frequent(texts: list[str], most: int) -> list[str]:
    """The texts with a blank for all but their ``most`` frequent characters, which go without a piece."""
    counts = Counter[str]()
    for text in texts:
        counts.update(text)
    blanks = {ord(char): " " for char, _ in counts.most_common()[most:]}
    # SentencePiece refuses to learn from nothing.
    return [text.translate(blanks) for text in texts if text.strip()] or ["a"]
