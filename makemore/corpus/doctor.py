"""What a text and this machine are like, before anything is trained."""

from __future__ import annotations

import contextlib
import os
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from makemore.corpus.datasets import open_input
from makemore.corpus.decoding import NotTextError
from makemore.corpus.documents import SPLITS, Documents, make_documents
from makemore.corpus.source import Source
from makemore.corpus.splits import make_corpus
from makemore.corpus.text import Text, store_text
from makemore.errors import UserError
from makemore.models import MODELS
from makemore.runtime.device import has_fast_bfloat16, memory_of, pick_device
from makemore.settings import CorpusConfig, override
from makemore.training.observers import Silent
from makemore.training.planning import (
    BYTES_PER_PARAMETER,
    TrainRequest,
    facts_of,
    fit_context,
    parameters_of,
)

RARE = 3
"""A character that occurs at most so often is rare."""
SHOWN = 30
GUESSES = ("utf-16", "cp1252")
WORDS = 2_000_000
"""Once so many are counted, no more of the text is read for them."""
MOST_ENCODED = 1 << 28
"""Bytes of the largest text that is encoded to see what training would choose."""


@dataclass
class Diagnosis:
    """Findings by section, in words; and advice."""

    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    advice: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {**self.sections, "advice": self.advice}


def diagnose(
    names: Sequence[str], corpus: dict[str, Any] | None = None, try_compile: bool = True
) -> Diagnosis:
    """Look at a text (none: the list that ships with the project) and at this machine.

    Raises UserError for a text that isn't there or has nothing to learn from.
    """
    found = Diagnosis()
    config = override(CorpusConfig(), corpus or {}, "corpus")
    source = open_input(names)
    text, encoding = _read(source, config, found)
    documents = make_documents(text, config)
    found.sections["text"] = {
        "source": source.name,
        "files": len(source.parts),
        "encoding": encoding,
        "bytes": text.size,
        "characters": text.chars,
        "sha256": text.digest,
    }
    found.sections["alphabet"] = _of_alphabet(_alphabet(text), found)
    found.sections["lines"] = _of_lines(text)
    found.sections["words"] = _of_words(text)
    found.sections["splits"] = _of_splits(documents, found)
    found.sections["machine"] = _of_machine(try_compile, found)
    found.sections["a default run"] = _of_run(text, config)
    return found


def _read(source: Source, config: CorpusConfig, found: Diagnosis) -> tuple[Text, str]:
    """The text, if need be in another encoding than was asked for."""
    try:
        return store_text(source, config.encoding), config.encoding
    except NotTextError as error:
        first = error
    for encoding in GUESSES:
        with contextlib.suppress(UserError):
            text = store_text(source, encoding)
            if any(map(_is_garbage, _alphabet(text))):
                continue
            found.advice.append(f"{first}; it can be read as {encoding}: look whether that is right")
            return text, encoding
    raise first


def _is_garbage(char: str) -> bool:
    """Control characters, and code points that are no character: what binary files decode to."""
    return unicodedata.category(char) in ("Cc", "Cn", "Co") and not char.isspace()


def _alphabet(text: Text) -> Counter[str]:
    counts: Counter[str] = Counter()
    for piece in text.pieces():
        counts.update(piece)
    return counts


def _of_alphabet(counts: Counter[str], found: Diagnosis) -> dict[str, Any]:
    rare = sorted(char for char, n in counts.items() if n <= RARE)
    odd = [char for char in counts if not char.isprintable() and char not in "\n\t"]
    if len(counts) > 1000:
        found.advice.append(f"{len(counts):,} different characters: try --tokenizer byte or bpe:2048")
    if odd:
        found.advice.append(f"control characters: {' '.join(repr(c) for c in sorted(odd)[:SHOWN])}")
    return {
        "characters": len(counts),
        "most often": " ".join(repr(char) for char, _ in counts.most_common(SHOWN)),
        f"at most {RARE} times": len(rare),
        "of these": " ".join(repr(char) for char in rare[:SHOWN]),
    }


def _line_lengths(text: Text) -> Iterator[list[str]]:
    for piece in text.pieces():
        yield piece.removesuffix("\n").split("\n")


def _of_lines(text: Text) -> dict[str, Any]:
    lengths, kinds, blank = [], Counter[int](), 0
    for lines in _line_lengths(text):
        lengths.append(np.array([len(line) for line in lines]))
        blank += sum(not line.strip() for line in lines)
        kinds.update(hash(line) for line in lines if line.strip())
    every = np.concatenate(lengths)
    filled = int(kinds.total())
    return {
        "lines": len(every),
        "blank": blank,
        "median length": int(np.median(every)),
        "longest": int(every.max()),
        "repeated": filled - len(kinds),
        "repeated, share": (filled - len(kinds)) / max(filled, 1),
    }


def _of_words(text: Text) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    whole = True
    for piece in text.pieces():
        whole = counts.total() < WORDS
        if not whole:
            break
        counts.update(piece.split())
    often = np.array([n for _, n in counts.most_common(1000)], np.float64)
    slope = float("nan")
    if len(often) > 9:
        # Zipf's law: frequency falls as rank to the power of about -1.
        slope = round(float(np.polyfit(np.log(np.arange(1, len(often) + 1)), np.log(often), 1)[0]), 4) + 0.0
    return {
        "counted in": "the whole text" if whole else f"its first {counts.total():,} words",
        "words": counts.total(),
        "different": len(counts),
        "once only": sum(n == 1 for n in counts.values()),
        "slope of log frequency by log rank": slope,
        "most often": " ".join(word for word, _ in counts.most_common(10)),
    }


def _of_splits(documents: Documents, found: Diagnosis) -> dict[str, Any]:
    section: dict[str, Any] = {"mode": documents.mode, "because": documents.reason}
    if documents.mode == "text":
        sizes = {name: sum(len(p) for part in documents.read(name) for p in part) for name in SPLITS}
        return {**section, **{f"{name}, characters": size for name, size in sizes.items()}}
    held_out = {name: documents.all(name) for name in ("val", "test")}
    wanted = {line for lines in held_out.values() for line in lines}
    seen: set[str] = set()
    section["train, lines"] = len(documents.spans["train"].begin)
    for lines in documents.read("train"):
        seen.update(wanted.intersection(lines))
    for name, lines in held_out.items():
        share = sum(line in seen for line in lines) / max(len(lines), 1)
        section[f"{name}, lines"] = len(lines)
        section[f"{name}, share that stands in train"] = share
        if share > 0.01:
            found.advice.append(
                f"{share:.1%} of {name} stands verbatim in train: --dedupe keeps twins together"
            )
    return section


def _of_machine(try_compile: bool, found: Diagnosis) -> dict[str, Any]:
    device = pick_device("auto")
    compiles, note = _compiles(device) if try_compile else (None, "not tried")
    if compiles is False:
        found.advice.append(f"torch.compile doesn't work here ({note}); training goes on without")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "device": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory, GB": round(memory, 1) if (memory := memory_of(device)) else None,
        "torch": torch.__version__,
        "bfloat16": "fast" if has_fast_bfloat16(device) else "slow or none: float32 is used",
        "torch.compile": note,
    }


def _compiles(device: torch.device) -> tuple[bool, str]:
    begun = time.perf_counter()
    try:
        doubled = torch.compile(lambda x: x.sin() * 2)(torch.ones(8, device=device))
        torch.testing.assert_close(doubled, torch.ones(8, device=device).sin() * 2)
    except Exception as error:  # noqa: BLE001 - compilers fail in many ways
        reason = next(iter(str(error).strip().splitlines()), "")
        return False, f"{type(error).__name__}: {reason}"[:120]
    return True, f"works ({time.perf_counter() - begun:.1f} s for a small function)"


def _of_run(text: Text, config: CorpusConfig) -> dict[str, Any]:
    """What ``makemore train`` would choose with no other flag, and the memory it takes."""
    if text.size > MOST_ENCODED:
        return {"left out": f"the text has more than {MOST_ENCODED:,} bytes"}
    corpus = make_corpus(text, config, "char")
    vocab_size = corpus.tokenizer.vocab_size
    kind = MODELS.get(TrainRequest().model)
    recipe = kind.recipe(facts_of(corpus, {}, pick_device("auto")))
    model, train = fit_context(kind, recipe.model, recipe.train, corpus, Silent())
    parameters = parameters_of(kind, model, vocab_size)
    # Activations kept for the backward pass, as Korthikanti et al. (2022) count them, in float32.
    per_token = model.n_layer * (34 * model.n_embd + 5 * model.n_head * model.block_size) * 2
    return {
        "model": TrainRequest().model,
        "parameters": parameters,
        "weights, gradients and optimizer, MB": round(parameters * BYTES_PER_PARAMETER / 1e6, 1),
        "activations, MB": round(per_token * train.batch_tokens / 1e6, 1),
        "tokens, MB": round(sum(split.tokens_N.nbytes for split in corpus.splits.values()) / 1e6, 1),
    }
