"""Input sources: files, compressed files, directories, globs, standard input and URLs."""

from __future__ import annotations

import gzip
import http.server
import io
import os
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import zstandard

from makemore.corpus.datasets import bundled_file, resolve_input
from makemore.corpus.source import Source, resolve_recorded_source, resolve_source
from makemore.corpus.text import read_source
from makemore.errors import UserError
from makemore.settings import CorpusConfig

ONE, TWO = "first é\nsecond", "third\n"


def read(source: Source) -> str:
    return "".join(read_source(source).pieces())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "texts" / "inner").mkdir(parents=True)
    (tmp_path / "texts" / "a.txt").write_text(ONE, encoding="utf-8")
    with gzip.open(tmp_path / "texts" / "inner" / "b.txt.gz", "wb") as file:
        file.write(TWO.encode())
    (tmp_path / "texts" / "picture.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "texts" / ".hidden").write_text("no", encoding="utf-8")
    return tmp_path / "texts"


def test_directory_is_read_in_sorted_order(folder):
    source = resolve_source(str(folder))
    # A newline is inserted after a file that doesn't end with one.
    assert read(source) == ONE + "\n" + TWO
    assert source.n_skipped == 1
    assert source.stem == "texts"


def test_runs_in_a_directory_are_skipped(folder):
    (folder / "run").mkdir()
    (folder / "run" / "model.safetensors").write_bytes(b"x")
    (folder / "run" / "samples.txt").write_text("mine", encoding="utf-8")
    assert read(resolve_source(str(folder))) == ONE + "\n" + TWO
    with pytest.raises(UserError, match="is a run"):
        resolve_source(str(folder / "run"))


def test_globs_and_several_files(folder):
    assert read(resolve_source(str(folder / "*.txt"))) == ONE
    assert read(resolve_source(str(folder / "**" / "*.gz"))) == TWO
    both = resolve_source(str(folder / "inner" / "b.txt.gz"), str(folder / "a.txt"))
    assert read(both) == TWO + ONE
    assert both.stem == "b"
    assert both.name.endswith("and 1 more")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-8-sig"])
def test_each_file_is_decoded_separately(tmp_path, encoding):
    texts = ["one é\n", "two", "three ü\n", "four\n"]
    paths = [tmp_path / f"{i}.txt" for i in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(text.encode(encoding))
    source = resolve_source(*map(str, paths))
    text = read_source(source, CorpusConfig(encoding="utf-8" if encoding == "utf-8-sig" else encoding))
    assert "".join(text.pieces()) == "one é\ntwo\nthree ü\nfour\n"


def test_decoding_error_names_the_file(tmp_path):
    for name, data in (("good", b"fine\n"), ("bad", b"ab\xff"), ("blank", b"\n")):
        (tmp_path / name).write_bytes(data)
    with pytest.raises(
        UserError, match=r"bad is not utf-8: 1 invalid byte, the first \(0xff\) at byte 2 in line 1"
    ):
        read_source(resolve_source(str(tmp_path / "good"), str(tmp_path / "bad")))
    assert read_source(resolve_source(str(tmp_path / "blank"), str(tmp_path / "good"))).size == 6
    with pytest.raises(UserError, match="is empty"):
        read_source(resolve_source(str(tmp_path / "blank"), str(tmp_path / "blank")))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files(tmp_path, suffix):
    data = ("line\n" * 50_000).encode()
    compress = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[suffix]
    (tmp_path / f"x.txt{suffix}").write_bytes(compress(data))
    source = resolve_source(str(tmp_path / f"x.txt{suffix}"))
    assert read(source).encode() == data
    assert source.stem == "x"
    (tmp_path / f"x.txt{suffix}").write_bytes(compress(data)[:-9])
    if suffix == ".gz":
        with pytest.raises(UserError, match="can't read"):
            read(source)
    (tmp_path / f"x.txt{suffix}").write_bytes(b"not packed at all")
    with pytest.raises(UserError, match="can't read"):
        read(source)


def test_zst_without_zstandard_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "x.zst").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(UserError, match="pip install zstandard"):
        read(resolve_source(str(tmp_path / "x.zst")))


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(ONE.encode())))
    source = resolve_source("-")
    assert (read(source), source.stem, source.absolute_names()) == (ONE, "stdin", ["-"])
    with pytest.raises(UserError, match="can't be combined"):
        resolve_source("-", "a.txt")


@pytest.fixture
def server(folder) -> Iterator[str]:
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def test_http_urls(server):
    assert read(resolve_source(f"{server}/a.txt")) == ONE
    assert read(resolve_source(f"{server}/inner/b.txt.gz")) == TWO
    with pytest.raises(UserError, match="can't read"):
        read(resolve_source(f"{server}/none.txt"))


@pytest.mark.parametrize(
    "url", ["file:///etc/hostname", "s3://bucket/key", "http::file:///etc/hostname", "a://b", "http://x::y"]
)
def test_other_protocols_and_chained_urls_are_refused(url):
    with pytest.raises(UserError, match="only http:// and https://"):
        resolve_source(url)


def test_recorded_sources_must_be_local_regular_files(folder, tmp_path):
    assert read(resolve_recorded_source([str(folder / "a.txt")])) == ONE
    assert read(resolve_recorded_source([str(folder)])) == ONE + "\n" + TWO
    for path in ("http://127.0.0.1:9/a.txt", "-", "//host/share/a.txt", "\\\\host\\share", "memory://a::b"):
        with pytest.raises(UserError, match="not a local file"):
            resolve_recorded_source([path])
    for path in (os.devnull, str(tmp_path / "none.txt")):
        with pytest.raises(UserError, match="missing or is not a regular file"):
            resolve_recorded_source([path])


def test_sources_without_text_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no text files"):
        resolve_source(str(tmp_path))
    with pytest.raises(UserError, match="no text files"):
        resolve_source(str(tmp_path / "*.txt"))
    with pytest.raises(UserError, match="no such file"):
        read(resolve_source(str(tmp_path / "none.gz")))


def test_data_set_names_and_the_default():
    assert resolve_input(()).parts == (str(bundled_file()),)
    assert resolve_input(("first-names",)).parts == (str(bundled_file()),)
    assert resolve_input(("-",)).parts == ("-",)
