"""Reading text files."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from makemore.corpus.decoding import decode_text, read_text
from makemore.errors import UserError

TEXT = "emma\nolivia\n\tava  \nœuf 👩‍🌾\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32", "utf-8-sig", "UTF_8"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_the_text_is_the_same_however_it_is_written(tmp_path, encoding, line_end, mark):
    (tmp_path / "a.txt").write_bytes((mark + TEXT.replace("\n", line_end)).encode(encoding))
    assert read_text(tmp_path / "a.txt", encoding) == TEXT


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\ufeff"), min_size=1))
def test_any_text_is_read_as_it_is(text):
    if text.encode().strip():
        assert decode_text(text.encode(), "a") == text


@given(st.binary())
def test_any_bytes_are_text_or_an_error(data):
    with contextlib.suppress(UserError):
        assert "\r" not in decode_text(data, "a")


@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf", "👩".encode() * 5])
def test_the_place_of_a_wrong_byte_counts_bytes_of_the_file(before):
    data = before + b"abc\xff"
    with pytest.raises(
        UserError, match=rf"^a is not utf-8: byte 0xff at {len(data) - 1}; .*--encoding latin-1$"
    ):
        decode_text(data, "a")


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
def test_what_is_no_text(tmp_path, data, encoding, message):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(UserError, match=message or "unknown encoding"):
        read_text(tmp_path / "a.txt", encoding)


def test_what_is_no_file(tmp_path):
    with pytest.raises(UserError, match="is a directory"):
        read_text(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        read_text(tmp_path / "none")
    with pytest.raises(UserError, match="can't read"):
        read_text(tmp_path / ("x" * 5000))
