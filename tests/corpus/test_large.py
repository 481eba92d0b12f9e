"""Texts too large for memory: the same splits and tokens as for small texts, but in files."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from makemore.corpus import cache, decoding, documents, splits, text
from makemore.corpus.cache import META, Cache
from makemore.corpus.documents import SPLITS, make_documents
from makemore.corpus.source import resolve_source
from makemore.corpus.splits import Corpus, make_corpus
from makemore.corpus.text import Text, read_source
from makemore.errors import UserError
from makemore.settings import CorpusConfig
from makemore.types import Split

rng = random.Random(3)
LINES = "\n".join("".join(rng.choice("abcdé👩 ") for _ in range(rng.randint(0, 9))) for _ in range(700))


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Treat texts over 200 bytes as large; return the cache directory."""
    monkeypatch.setattr(decoding, "BLOCK", 97)
    monkeypatch.setattr(text, "BLOCK", 89)
    monkeypatch.setattr(text, "MAX_IN_MEMORY_BYTES", 200)
    monkeypatch.setattr(splits, "MAX_IN_MEMORY_BYTES", 200)
    monkeypatch.setattr(documents, "LINES_PER_BLOCK", 50)
    monkeypatch.setenv("MAKEMORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "built"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(LINES, encoding="utf-8", newline="")
    return file


def text_of(path: Path, encoding: str = "utf-8") -> Text:
    return read_source(resolve_source(str(path)), CorpusConfig(encoding=encoding))


def check_equal(one: Corpus, two: Corpus) -> None:
    assert one.tokenizer.to_dict() == two.tokenizer.to_dict()
    for name in SPLITS:
        for field in dataclasses.fields(Split):
            a, b = getattr(one.splits[name], field.name), getattr(two.splits[name], field.name)
            if isinstance(a, np.ndarray):
                assert a.dtype == b.dtype
                np.testing.assert_array_equal(a, b)
            else:
                assert a == b
    for field in dataclasses.fields(Corpus):
        if field.name not in ("splits", "tokenizer", "train_lines"):
            assert getattr(one, field.name) == getattr(two, field.name), field.name


@pytest.mark.parametrize("mode", ["lines", "text"])
@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_large_text_encodes_like_a_small_one(small_limits, path, mode, tokenizer):
    config = CorpusConfig(mode=mode, split="0.6,0.2,0.2")
    large = make_corpus(text_of(path), config, tokenizer)
    assert isinstance(large.splits["train"].tokens_N, np.memmap)
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(splits, "MAX_IN_MEMORY_BYTES", 1 << 30)
        small = make_corpus(Text.of(LINES), config, tokenizer)
    assert not isinstance(small.splits["train"].tokens_N, np.memmap)
    check_equal(small, large)


@pytest.mark.parametrize("mode", ["lines", "text"])
def test_bpe_is_lossless_across_pieces(small_limits, path, mode):
    corpus = make_corpus(text_of(path), CorpusConfig(mode=mode, split="0.6,0.2,0.2"), "bpe:280")
    parts = make_documents(Text.of(LINES), CorpusConfig(mode=mode, split="0.6,0.2,0.2"))
    for name in SPLITS:
        end = "\n" if mode == "lines" else ""
        expected = "".join(document + end for document in parts.all(name))
        assert corpus.tokenizer.decode(corpus.splits[name].tokens_N) == expected
        assert corpus.splits[name].bytes == len(expected.encode())
        assert corpus.splits[name].chars == len(expected)


def test_encoded_corpus_is_read_from_the_cache(small_limits, path, monkeypatch):
    first = make_corpus(text_of(path), CorpusConfig(mode="text"), "bpe:280")

    def fail(*args: object) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(splits, "_encode", fail)
    monkeypatch.setattr(splits, "make_documents", fail)
    check_equal(first, make_corpus(text_of(path), CorpusConfig(mode="text"), "bpe:280"))
    with pytest.raises(AssertionError):
        make_corpus(text_of(path), CorpusConfig(mode="text", split="0.5,0.25,0.25"), "bpe:280")


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "meta"])
def test_damaged_cache_entry_is_rebuilt(small_limits, path, damage):
    first = make_corpus(text_of(path), CorpusConfig(mode="text"), "char")
    tokens = np.array(first.splits["train"].tokens_N)
    for file in small_limits.glob(f"*/{META if damage == 'meta' else 'train-tokens.bin'}"):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 255
        file.unlink()
        if damage != "delete":
            file.write_bytes(data[:-1] if damage == "truncate" else data)
    again = make_corpus(text_of(path), CorpusConfig(mode="text"), "char")
    np.testing.assert_array_equal(again.splits["train"].tokens_N, tokens)


def test_concurrent_builds_agree(small_limits, path):
    with ThreadPoolExecutor(8) as pool:
        built = list(
            pool.map(lambda _: make_corpus(text_of(path), CorpusConfig(mode="lines"), "char"), range(8))
        )
    for other in built[1:]:
        check_equal(built[0], other)
    assert not list(small_limits.glob(".building-*"))


def test_unwritable_cache_is_noted(small_limits, path, monkeypatch):
    blocker = path.with_name("file")
    blocker.write_text("in the way", encoding="utf-8")
    monkeypatch.setenv("MAKEMORE_CACHE", str(blocker))
    corpus = make_corpus(text_of(path), CorpusConfig(mode="lines"), "char")
    assert "no cache" in corpus.notes[0]
    assert len(corpus.splits["train"].tokens_N)


def test_full_disk_raises_a_user_error(small_limits, path, monkeypatch):
    def disk_full(folder: Path, metadata: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "_seal", disk_full)
    with pytest.raises(UserError, match=r"No space left on device; free some space.*MAKEMORE_CACHE"):
        make_corpus(text_of(path), CorpusConfig(mode="lines"), "char")
    assert not list(small_limits.glob(".building-*"))


def test_entry_built_by_another_process_meanwhile_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("MAKEMORE_CACHE", str(tmp_path))
    store = Cache("things")

    def build(folder: Path) -> dict[str, int]:
        if "inner" not in seen:
            seen.add("inner")
            store.get_or_build("key", lambda inner: (inner / "a.bin").write_bytes(b"first") and {"who": 1})
        (folder / "a.bin").write_bytes(b"second")
        return {"who": 2}

    seen: set[str] = set()
    folder, metadata = store.get_or_build("key", build)
    assert metadata == {"who": 1}
    assert (folder / "a.bin").read_bytes() == b"first"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_large_text_is_normalised(small_limits, tmp_path, encoding, line_end):
    file = tmp_path / "a.txt"
    file.write_bytes(LINES.replace("\n", line_end).encode(encoding))
    stored = text_of(file, encoding)
    assert bytes(stored.data[:]) == LINES.encode()
    assert stored.digest == hashlib.sha256(LINES.encode()).hexdigest()
    assert stored.chars == len(LINES)
    assert "".join(stored.pieces()) == LINES
    for char in (0, 1, 57, 1000, len(LINES) - 1, len(LINES)):
        assert stored.byte_offset(char) == len(LINES[:char].encode())
