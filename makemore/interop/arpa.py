"""Export count models as ARPA files, which KenLM, SRILM and others read.

Interpolation converts exactly to back-off (Chen & Goodman 1998): a seen n-gram has its interpolated
probability, and the back-off weight of a context is the share that it passes to the shorter context.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from makemore.errors import UserError
from makemore.evaluation.scoring import UNKNOWN_CHAR_NATS
from makemore.interop.base import ExportFormat
from makemore.models.base import LanguageModel
from makemore.models.count import Count
from makemore.models.smoothing import SmoothedNgrams
from makemore.runs.run import Run
from makemore.tokenizers import Tokenizer
from makemore.tokenizers.bpe import byte_encoder
from makemore.tokenizers.char import CharTokenizer
from makemore.types import Floats

KENLM_DEFAULT_MAX_ORDER = 6
BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
LOG10_ZERO = -99.0
"""ARPA's notation for log10(0)."""
UNKNOWN_LOG10 = -UNKNOWN_CHAR_NATS / math.log(10)
"""log10 of the probability that scoring assigns to a character outside the alphabet."""


def arpa_lines(model: LanguageModel, tokenizer: Tokenizer) -> Iterator[str]:
    """Yield the lines of the file, with base-10 logarithms.

    The boundary is ``<s>`` at the start of an n-gram and ``</s>`` at its end. Raises UserError for a model
    that doesn't back off.
    """
    if not isinstance(model, Count):
        raise UserError("--format arpa is for count models; export other models with --format onnx")
    smoothed = model.smoothed
    if not smoothed.backs_off:
        raise UserError(
            "ARPA can't represent additive smoothing, which doesn't back off; train with "
            "--set model.smoothing=kneser-ney or recursive-additive"
        )
    table, words = smoothed.table, word_list(tokenizer)
    yield "\\data\\"
    for n, size in enumerate(table.sizes, start=1):
        # Unigrams include two entries for the boundary, and <unk>.
        yield f"ngram {n}={size + (2 if n == 1 else 0)}"
    contexts = [""]
    for n, log_p in enumerate(log10_probabilities(smoothed), start=1):
        level = table.level(n)
        rests = None if n == table.order else log10(smoothed.backoff_weights_C[level].astype(np.float64))
        nodes_and_tokens = zip(table.parents(table.level(n - 1)), table.tokens_G[level], strict=True)
        grams = [contexts[node] + words[token] for node, token in nodes_and_tokens]
        yield f"\n\\{n}-grams:"
        if n == 1:
            yield f"{UNKNOWN_LOG10:.9g}\t{UNKNOWN}"
            # All tokens may be listed after <s>, so that only <unk> backs off: weight 1.
            begin = None if rests is None else np.where(rests[:1] <= LOG10_ZERO, 0.0, rests[:1])
            yield from _entries([BEGIN], np.array([LOG10_ZERO]), begin)
            if rests is not None:
                rests[0] = 0.0  # nothing follows </s>
        yield from _entries(grams, log_p, rests)
        contexts = [f"{gram} " for gram in grams]
        if n == 1:
            contexts[0] = f"{BEGIN} "
    yield "\n\\end\\"


def log10_probabilities(smoothed: SmoothedNgrams) -> Iterator[Floats]:
    """Yield, for each order, log10 of all n-grams' interpolated probabilities, in the table's order."""
    table = smoothed.table
    p_G, suffixes_G = smoothed.unigram_1V[0], table.suffixes()
    yield log10(p_G)
    for n in range(2, table.order + 1):
        weights = smoothed.backoff_weights_C[table.level(n - 1)][table.parents(table.level(n - 1))]
        shorter = suffixes_G[table.level(n)] - table.starts[n - 1]
        p_G = smoothed.shares_G[table.level(n)] + weights * p_G[shorter]
        yield log10(p_G)


def log10(p: Floats) -> Floats:
    """Base-10 logarithm, at most 0 despite rounding; returns ``LOG10_ZERO`` (-99) for probability 0."""
    return np.log10(np.clip(p, 10**LOG10_ZERO, 1.0))


def _entries(grams: list[str], log_p: Floats, rests: Floats | None) -> Iterator[str]:
    ends = itertools.repeat("") if rests is None else (f"\t{rest:.9g}" for rest in rests.tolist())
    yield from (f"{p:.9g}\t{gram}{end}" for p, gram, end in zip(log_p.tolist(), grams, ends, strict=False))


def word_list(tokenizer: Tokenizer) -> list[str]:
    """Spelling of each token without whitespace: characters as themselves or like ``<U+0020>``, bytes as the
    letters of byte-level BPE. The boundary is ``</s>``."""
    if isinstance(tokenizer, CharTokenizer):
        return [END, *(_visible(char) for char in tokenizer.alphabet)]
    letters = byte_encoder()
    pieces = (tokenizer.decode_bytes([i]) for i in range(1, tokenizer.vocab_size))
    words = [END, *("".join(letters[byte] for byte in piece) for piece in pieces)]
    if len(set(words)) == len(words):
        return words
    # SentencePiece may have a letter both as a piece and as a byte: use ids.
    return [END, *(f"<{i}>" for i in range(1, tokenizer.vocab_size))]


def _visible(char: str) -> str:
    return char if char.isprintable() and not char.isspace() else f"<U+{ord(char):04X}>"


def _files(run: Run) -> dict[str, bytes]:
    return {"": "".join(f"{line}\n" for line in arpa_lines(run.model, run.tokenizer)).encode()}


def _note(model: LanguageModel) -> str:
    order = model.config.order
    is_long = order > KENLM_DEFAULT_MAX_ORDER
    return f"order {order}: build KenLM with KENLM_MAX_ORDER={order}" if is_long else ""


FORMAT = ExportFormat(suffix=".arpa", files=_files, note=_note)
