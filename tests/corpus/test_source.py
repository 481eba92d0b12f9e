"""Decoding text files."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from makemore.corpus.decoding import decode_blocks
from makemore.corpus.source import Source, resolve_source
from makemore.corpus.text import read_source
from makemore.errors import UserError
from makemore.settings import CorpusConfig

TEXT = "emma\nolivia\n\tava  \nœuf 👩‍🌾\n"


def decode(data: bytes) -> str:
    return "".join(decode_blocks([data], "a"))


def read(path: Path, encoding: str = "utf-8") -> str:
    return read_source(resolve_source(str(path)), CorpusConfig(encoding=encoding)).string()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32", "utf-8-sig", "UTF_8"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_encodings_and_line_ends_decode_to_the_same_text(tmp_path, encoding, line_end, bom):
    (tmp_path / "a.txt").write_bytes((bom + TEXT.replace("\n", line_end)).encode(encoding))
    assert read(tmp_path / "a.txt", encoding) == TEXT


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\ufeff"), min_size=1))
def test_utf8_text_round_trips(text):
    if text.encode().strip():
        assert decode(text.encode()) == text


@given(st.binary())
def test_any_bytes_decode_or_raise_a_user_error(data):
    with contextlib.suppress(UserError):
        assert "\r" not in decode(data)


@pytest.mark.parametrize("prefix", [b"", b"\xef\xbb\xbf", "👩".encode() * 5])
def test_error_gives_the_byte_offset_in_the_file(prefix):
    data = prefix + b"abc\xff"
    with pytest.raises(
        UserError,
        match=rf"^a is not utf-8: 1 invalid byte, the first \(0xff\) at byte {len(data) - 1} in line 1;",
    ):
        decode(data)


@pytest.mark.parametrize(
    ("data", "encoding", "message"),
    [
        (b"", "utf-8", "is empty"),
        (b" \n\t", "latin-1", "is empty"),
        (b"ab\0cd", "utf-8", "looks binary .zero byte at 2"),
        (b"abc", "utf-16-le", "not utf-16-le"),
        (b"ab", "utf-7000", None),
        (b"\x00\xd8", "utf-16-le", "not utf-16-le"),
        (b"+2AA-", "utf-7", "utf-7|surrogates"),
        (b"abc", "rot13", "can't be decoded"),
        (b"abc", "zlib", "can't be decoded"),
    ],
)
def test_undecodable_files_are_refused(tmp_path, data, encoding, message):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(UserError, match=message or "unknown encoding"):
        read(tmp_path / "a.txt", encoding)


def test_unreadable_paths_are_refused(tmp_path):
    with pytest.raises(UserError, match="is a directory"):
        read_source(Source((str(tmp_path),), (str(tmp_path),)))
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "none")
    with pytest.raises(UserError, match="can't read"):
        read(tmp_path / ("x" * 5000))
