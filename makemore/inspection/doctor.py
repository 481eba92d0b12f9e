"""Examine a text and this machine before training."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from unicodedata import category

import numpy as np
import torch

from makemore.corpus.datasets import resolve_input
from makemore.corpus.decoding import NotTextError
from makemore.corpus.documents import MODE_SAMPLE_BYTES, SPLITS, Documents, make_documents
from makemore.corpus.mode import choose_mode
from makemore.corpus.source import Source
from makemore.corpus.splits import make_corpus
from makemore.corpus.text import Text, read_source
from makemore.errors import UserError
from makemore.models import MODELS
from makemore.runtime.characters import clip, is_harmless
from makemore.runtime.device import has_fast_bfloat16, pick_device, total_memory_gb
from makemore.settings import CorpusConfig, TrainConfig, parse
from makemore.training.observers import Observer
from makemore.training.planning import BYTES_PER_PARAMETER, corpus_stats, count_parameters, fit_context
from makemore.training.request import DEFAULT_MODEL, PARALLEL_MODEL

MAX_RARE_COUNT = 3
"""Maximum count of a rare character."""
MAX_SHOWN = 30
MAX_WORD, MAX_LINE = 20, 100
"""Maximum number of characters of a word, and of a list of them."""
FALLBACK_ENCODINGS = ("utf-16", "cp1252")
MAX_MEAN_WORD = 20
"""Maximum mean length of words; longer ones aren't words."""
MAX_WORDS = 2_000_000
"""Stop counting words after this many."""
MAX_LINES = 2_000_000
"""Stop looking for repeated lines after this many."""
TRAINING_TIMES = ((200_000, "1m"), (2_000_000, "2m"), (20_000_000, "10m"), (math.inf, "1h"))
"""Recommended training time of texts shorter than each number of characters."""
MAX_ENCODED = 1 << 28
"""Maximum size, in bytes, of a text to encode for the section on a default run."""


@dataclass(kw_only=True)
class Diagnosis:
    """Findings by section, and advice."""

    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    advice: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {**self.sections, "advice": self.advice}


def diagnose(
    names: Sequence[str], corpus: dict[str, Any] | None = None, try_compile: bool = True
) -> Diagnosis:
    """Examine a text (default: the list of names included in makemore) and this machine.

    Raises UserError if the text can't be read or contains nothing to learn from.
    """
    diagnosis = Diagnosis()
    config = parse(CorpusConfig, corpus or {}, "corpus")
    source = resolve_input(names)
    text, encoding = _read(source, config, diagnosis)
    diagnosis.advice += text.notes
    documents = make_documents(text, config)
    mode, reason = choose_mode(text.head(MODE_SAMPLE_BYTES))
    # The lines depend on their order, but are read as a list because the user set the mode.
    if is_sequence := documents.mode == "lines" and mode == "text":
        diagnosis.advice.append(f"use --mode text: {reason.partition(';')[0]}")
    diagnosis.sections["text"] = {
        "source": source.name,
        "files": len(source.parts),
        "encoding": encoding,
        "bytes, as UTF-8": text.size,
        "characters": text.chars,
        "sha256": text.digest,
    }
    diagnosis.sections["alphabet"] = _describe_alphabet(_count_chars(text), diagnosis)
    diagnosis.sections["lines"] = _describe_lines(text)
    diagnosis.sections["words"] = _describe_words(text)
    diagnosis.sections["splits"] = _describe_splits(documents, diagnosis, is_sequence)
    diagnosis.sections["machine"] = _describe_machine(try_compile, diagnosis)
    diagnosis.sections["a default run"] = _describe_default_run(text, config)
    diagnosis.sections["recommended"] = {
        "mode": documents.mode,
        "mode, because": documents.reason,
        "model": DEFAULT_MODEL,
        "model, because": "it trains a counting and a neural model, and weighs them at each character",
        "time": next(time for size, time in TRAINING_TIMES if text.chars < size),
        "encoding": encoding,
    }
    return diagnosis


def _read(source: Source, config: CorpusConfig, diagnosis: Diagnosis) -> tuple[Text, str]:
    """Read the text, trying other encodings if decoding fails; also returns the encoding used."""
    try:
        return read_source(source, config), config.encoding
    except NotTextError as error:
        first_error = error
    suggested = first_error.suggested_encoding
    for encoding in [suggested] if suggested else FALLBACK_ENCODINGS:
        with contextlib.suppress(UserError):
            text = read_source(source, config.replace(encoding=encoding))
            # Binary files decode to control, unassigned and private-use code points.
            if any(category(c) in ("Cc", "Cn", "Co") and not c.isspace() for c in _count_chars(text)):
                continue
            diagnosis.advice.append(f"{first_error}; it can be read as {encoding}: check the result")
            return text, encoding
    raise first_error


def _count_chars(text: Text) -> Counter[str]:
    counts: Counter[str] = Counter()
    for piece in text.pieces():
        counts.update(piece)
    return counts


def _describe_alphabet(counts: Counter[str], diagnosis: Diagnosis) -> dict[str, Any]:
    rare = sorted(char for char, n in counts.items() if n <= MAX_RARE_COUNT)
    odd = [char for char in counts if not is_harmless(char)]
    if len(counts) > 1000:
        diagnosis.advice.append(f"{len(counts):,} different characters: try --tokenizer byte or bpe:2048")
    if odd:
        shown = " ".join(map(repr, sorted(odd)[:MAX_SHOWN]))
        diagnosis.advice.append(f"control characters: {clip(shown, MAX_LINE)}")
    return {
        "characters": len(counts),
        "most often": clip(" ".join(repr(char) for char, _ in counts.most_common(MAX_SHOWN)), MAX_LINE),
        f"at most {MAX_RARE_COUNT} times": len(rare),
        "of these": clip(" ".join(map(repr, rare[:MAX_SHOWN])), MAX_LINE),
    }


def _describe_lines(text: Text) -> dict[str, Any]:
    lengths, distinct, n_blank = Counter[int](), Counter[int](), 0
    complete = True
    for piece in text.pieces():
        lines = piece.removesuffix("\n").split("\n")
        lengths.update(map(len, lines))
        n_blank += sum(not line.strip() for line in lines)
        complete = complete and distinct.total() < MAX_LINES
        if complete:
            distinct.update(hash(line) for line in lines if line.strip())
    n_nonblank = distinct.total()
    median = np.quantile([*lengths], 0.5, weights=[*lengths.values()], method="inverted_cdf")
    return {
        "lines": lengths.total(),
        "blank": n_blank,
        "median length": int(median),
        "longest": max(lengths),
        "repeats counted in": "the whole text" if complete else f"its first {n_nonblank:,} lines",
        "repeated": n_nonblank - len(distinct),
        "repeated, share": (n_nonblank - len(distinct)) / max(n_nonblank, 1),
    }


def _describe_words(text: Text) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    complete = True
    for piece in text.pieces():
        if not (complete := counts.total() < MAX_WORDS):
            break
        counts.update(piece.split())
    if sum(len(word) * n for word, n in counts.items()) > MAX_MEAN_WORD * counts.total():
        return {"left out": "the text isn't divided by spaces"}
    freqs = np.array([n for _, n in counts.most_common(1000)], np.float64)
    section: dict[str, Any] = {
        "counted in": "the whole text" if complete else f"its first {counts.total():,} words",
        "words": counts.total(),
        "different": len(counts),
        "once only": sum(n == 1 for n in counts.values()),
        "most often": clip(" ".join(clip(word, MAX_WORD) for word, _ in counts.most_common(10)), MAX_LINE),
    }
    if len(freqs) > 9:
        # Zipf's law: frequency falls as rank to the power of about -1.
        slope = np.polyfit(np.log(np.arange(1, len(freqs) + 1)), np.log(freqs), 1)[0]
        section["slope of log frequency by log rank"] = round(float(slope), 4) + 0.0
    return section


def _describe_splits(documents: Documents, diagnosis: Diagnosis, is_sequence: bool) -> dict[str, Any]:
    section: dict[str, Any] = {"mode": documents.mode, "because": documents.reason}
    if documents.mode == "text":
        sizes = {name: sum(len(p) for part in documents.read(name) for p in part) for name in SPLITS}
        return {**section, **{f"{name}, characters": size for name, size in sizes.items()}}
    held_out = {name: documents.all(name) for name in ("val", "test")}
    held_out_lines = {line for lines in held_out.values() for line in lines}
    in_train: set[str] = set()
    section["train, lines"] = len(documents.spans["train"].begin)
    for lines in documents.read("train"):
        in_train.update(held_out_lines.intersection(lines))
    for name, lines in held_out.items():
        share = sum(line in in_train for line in lines) / max(len(lines), 1)
        section[f"{name}, lines"] = len(lines)
        section[f"{name}, share also in train"] = share
        if share > 0.01 and not is_sequence:
            diagnosis.advice.append(
                f"{share:.1%} of {name} also occurs in train; use --dedupe to keep duplicates in one split"
            )
    return section


def _describe_machine(try_compile: bool, diagnosis: Diagnosis) -> dict[str, Any]:
    device = pick_device("auto")
    compiles, note = _test_compile(device) if try_compile else (None, "not tried")
    if compiles is False:
        diagnosis.advice.append(f"torch.compile doesn't work here ({note}); training runs without it")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "device": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory, GB": round(total_memory_gb(device), 1),
        "torch": torch.__version__,
        "bfloat16": "fast" if has_fast_bfloat16(device) else "slow or unsupported; float32 is used",
        "torch.compile": note,
    }


def _test_compile(device: torch.device) -> tuple[bool, str]:
    start = time.perf_counter()
    try:
        doubled = torch.compile(lambda x: x.sin() * 2)(torch.ones(8, device=device))
        torch.testing.assert_close(doubled, torch.ones(8, device=device).sin() * 2)
    except Exception as error:  # noqa: BLE001 - compilers fail in many ways
        reason = next(iter(str(error).strip().splitlines()), "")
        return False, f"{type(error).__name__}: {reason}"[:120]
    return True, f"works ({time.perf_counter() - start:.1f} s for a small function)"


def _describe_default_run(text: Text, config: CorpusConfig) -> dict[str, Any]:
    """Parameters and memory of the neural member of ``makemore train`` with default settings."""
    if text.size > MAX_ENCODED:
        return {"left out": f"the text is larger than {MAX_ENCODED:,} bytes"}
    corpus = make_corpus(text, config, "char")
    vocab_size = corpus.tokenizer.vocab_size
    kind = MODELS.get(PARALLEL_MODEL)
    recipe = kind.recipe(corpus_stats(corpus, TrainConfig(), pick_device("auto")))
    model, train = fit_context(kind, recipe.model, train=recipe.train, corpus=corpus, observer=Observer())
    parameters = count_parameters(kind, model, vocab_size)
    # Activations for the backward pass in float32, by the formula of Korthikanti et al. (2022).
    per_token = model.n_layer * (34 * model.n_embd + 5 * model.n_head * model.block_size) * 2
    return {
        "model": f"{DEFAULT_MODEL}, with a {PARALLEL_MODEL}",
        "parameters": parameters,
        "weights, gradients and optimizer, MB": round(parameters * BYTES_PER_PARAMETER / 1e6, 1),
        "activations, MB": round(per_token * train.data.batch_tokens / 1e6, 1),
        "tokens, MB": round(sum(split.tokens_N.nbytes for split in corpus.splits.values()) / 1e6, 1),
    }
