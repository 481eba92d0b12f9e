"""Faults reported with small files that crash a program or take all memory; comments describe the reports."""

from __future__ import annotations

import base64
import gzip
import json
import os
import tracemalloc
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import zstandard

from makemore.corpus import text as text_module
from makemore.corpus.cache import META, Cache
from makemore.corpus.documents import make_documents
from makemore.corpus.source import read_part, resolve_source
from makemore.corpus.splits import make_corpus
from makemore.corpus.text import MAX_IN_MEMORY_BYTES, read_source
from makemore.errors import UserError
from makemore.inspection import doctor
from makemore.inspection.doctor import diagnose
from makemore.runs.directory import RunDir
from makemore.runtime import process
from makemore.runtime.files import read_json, write_json
from makemore.runtime.untrusted import MAX_JSON_DEPTH, parse_json, read_foreign_json
from makemore.settings import CorpusConfig
from makemore.tokenizers.ranks import Ranks
from makemore.training.request import TrainRequest
from tests.cli.conftest import call, train, words
from tests.cli.conftest import refused as refused
from tests.cli.conftest import trained_runs as trained_runs
from tests.cli.conftest import work as work

posix = pytest.mark.skipif(os.name != "posix", reason="needs named pipes")
ODD_LINES = [
    "[" * 100_000,
    '{"a":' * 50_000,
    "[" * 900 + "]" * 900,
    '{"step": 2, "val": ' + "[" * 300 + "]" * 300 + "}",
    '{"step": "2", "val": 1.5}',
    '{"step": [2], "val": 1.5}',
    '{"step": true, "val": 1.5}',
    '{"step": 2, "val": null, "elapsed": 1, "tokens": 1}',
    '{"step": 2, "val": "low", "elapsed": {}, "tokens": []}',
    '{"step": 2, "val": 1.5}',
    '{"step": 2, "val": NaN, "loss": Infinity, "elapsed": 1, "tokens": 1}',
    '{"step": 2, "val": 1' + "0" * 400 + ', "loss": 1e400, "lr": -1' + "0" * 5000 + "}",
    '{"step": 2, "val": 1e308, "loss": 1e308, "elapsed": 1e308, "tokens": 1e308, "lr": 1e308}',
    '{"step": 2, "val": -1e308, "loss": -1e308, "elapsed": -1e308, "tokens": -1e308, "lr": -1e308}',
    "3",
    "null",
    "\x00\xff",
]


# A log with a line that no run writes (RecursionError and TypeError in tools that read the logs of others).
def test_any_line_in_the_log_is_read_or_skipped(work):
    train("words.txt", "-m", "bigram", "--steps", "5", "--out", "bigram")
    log = work / "bigram" / "metrics.jsonl"
    plain = log.read_bytes()
    figures = call("inspect", "bigram", "--json").out
    log.write_bytes(plain + "\n".join(ODD_LINES).encode("latin-1"))
    assert "were added after the run ended" in call("check", "bigram").err
    for command in (["inspect", "bigram"], ["compare", "bigram", "lines", "--html", "page.html"]):
        result = call(*command, "--json")
        assert result.status == 0, result.err
    assert json.loads(call("inspect", "bigram", "--json").out)["findings"] == json.loads(figures)["findings"]
    resumed = call("train", "words.txt", "-m", "bigram", "--out", "bigram", "--resume", "--steps", "9")
    assert resumed.status == 0, resumed.err


def test_json_has_a_depth_and_a_size(tmp_path):
    deepest = "[" * MAX_JSON_DEPTH + "1" + "]" * MAX_JSON_DEPTH
    assert parse_json(deepest)
    for text in (f"[{deepest}]", "[" * 100_000, '{"a":' * 100_000, "1" * 10_000):
        with pytest.raises(ValueError, match=r"nested too deeply|Exceeds"):
            parse_json(text)
    (tmp_path / "large.json").touch()
    os.truncate(tmp_path / "large.json", 1 << 40)  # a sparse file
    with pytest.raises(OSError, match="larger than"):
        read_foreign_json(tmp_path / "large.json")


def test_deep_settings_are_a_user_error(tmp_path):
    (tmp_path / "deep.toml").write_text("a = " + "[" * 5000, encoding="utf-8")
    with pytest.raises(UserError, match="is not TOML"):
        TrainRequest(config=tmp_path / "deep.toml")


# A damaged cache that is used because it is too large to verify.
def test_a_damaged_cache_of_any_size_is_built_again(tmp_path, monkeypatch):
    monkeypatch.setenv("MAKEMORE_CACHE", str(tmp_path))

    def build(folder: Path) -> dict[str, str]:
        (folder / "tokens.bin").touch()
        os.truncate(folder / "tokens.bin", 300 << 20)  # a sparse file
        return {"alphabet": "abc"}

    store = Cache("texts")
    folder, metadata = store.get_or_build("key", build)
    assert store.find("key") == (folder, metadata)
    with (folder / "tokens.bin").open("rb+") as file:
        file.seek(299 << 20)
        file.write(b"1")
    assert store.find("key") is None
    assert store.get_or_build("key", build) == (folder, metadata)
    meta = (folder / META).read_text(encoding="utf-8")
    (folder / META).write_text(meta.replace("abc", "abd"), encoding="utf-8")
    assert store.find("key") is None


# A compressed file that was cut short and read in part, silently (any tool built on zstandard's reader).
@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_that_was_cut_short_is_refused(work, refused, suffix):
    compress = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[suffix]
    text = (work / "words.txt").read_bytes() * 5000
    data = compress(text)
    path = work / f"words{suffix}"
    for end in (len(data) - 1, len(data) // 2, 20):
        path.write_bytes(data[:end])
        assert "can't read" in refused("tokenize", path.name)
    path.write_bytes(data + compress(b"last\n"))  # several members, as pzstd and bgzip write them
    assert b"".join(read_part(str(path))) == text + b"last\n"
    path.write_bytes(data + b"garbage")
    assert "can't read" in refused("tokenize", path.name)


def test_zst_is_decompressed_in_bounded_memory(tmp_path):
    data = zstandard.ZstdCompressor().compress(bytes(1 << 30))
    (tmp_path / "zeros.zst").write_bytes(data)
    tracemalloc.start()
    assert sum(map(len, read_part(str(tmp_path / "zeros.zst")))) == 1 << 30
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 300e6


# A bus error, because a log file was rotated while it was read through mapped memory.
@pytest.mark.parametrize("change", ["shorter", "other bytes"])
@pytest.mark.parametrize("mode", ["lines", "text"])
def test_a_text_that_changes_while_it_is_read_is_a_user_error(tmp_path, mode, change):
    path = tmp_path / "large.txt"
    path.write_text(words(50_000) * 16, encoding="utf-8")
    text = read_source(resolve_source(str(path)))
    assert text.size > MAX_IN_MEMORY_BYTES
    documents = make_documents(text, CorpusConfig(mode=mode))
    os.utime(path, ns=(1, 1))
    if change == "shorter":
        os.truncate(path, 100)
    for read in (lambda: documents.all("train"), lambda: make_corpus(text, CorpusConfig(mode=mode), "char")):
        with pytest.raises(UserError, match=r"large\.txt changed while it was read"):
            read()


@posix
def test_a_large_text_is_read_from_a_pipe(tmp_path):
    content = words(50_000).encode() * 16
    os.mkfifo(tmp_path / "pipe")
    writer = Thread(target=(tmp_path / "pipe").write_bytes, args=(content,))
    writer.start()
    text = read_source(resolve_source(str(tmp_path / "pipe")))
    writer.join()
    assert b"".join(text.blocks()) == content


# tiktoken#590: a panic of the Rust code, where the pattern of a shared tokenizer matches the empty string.
@pytest.mark.parametrize("pattern", ["", "a*", "(?=a)", r"\b", "^", "x|", "[", "(?<!\\d)"])
def test_a_pattern_that_matches_nothing_is_damage(work, refused, pattern):
    train("words.txt", "-m", "count", "-t", "bpe:260", "--out", "run")
    path = work / "run" / "tokenizer.json"
    tokens = "".join(f"{base64.b64encode(bytes([byte])).decode()} " for byte in range(256)).strip()
    kept = base64.b64encode(b"\xff" * 32).decode()
    saved = {"name": "tiktoken", "encoding": "mine", "pattern": pattern, "ranks": tokens, "kept": kept}
    write_json(path, {**saved, "run_id": read_json(path)["run_id"]})
    for command in (["sample", "run"], ["eval", "run"], ["check", "run"]):
        assert "damaged or from another version" in refused(*command)


# Text that vanishes, because the pattern of a shared tokenizer doesn't match it.
@pytest.mark.parametrize("pattern", ["x", "(a+)+$", "[a-z]+"])
def test_a_pattern_that_skips_text_is_a_user_error(pattern):
    ranks = Ranks(pattern, [bytes([byte]) for byte in range(256)])
    with pytest.raises(UserError, match="skips characters"):
        ranks.encode("bananas and x")


def test_a_panic_of_the_tokenizer_is_a_user_error(capfd):
    ranks = Ranks(r"(?=q)|[\s\S]", [bytes([byte]) for byte in range(256)])
    assert len(ranks.encode("banana")) == 6
    with pytest.raises(UserError, match="the tokenizer fails on this text"):
        ranks.encode("quick")


# A compressed file of a few megabytes whose short lines take all memory.
def test_lines_that_dont_fit_in_memory_are_a_user_error(work, refused, monkeypatch):
    (work / "short.txt.gz").write_bytes(gzip.compress(b"a\nb\n" * 100_000))
    monkeypatch.setattr(process, "total_memory", lambda: 5_000_000)
    for command in (
        ["doctor", "short.txt.gz", "--mode", "lines"],
        ["train", "short.txt.gz", "--mode", "lines"],
    ):
        assert "200,001 lines take about 0.0 GB of memory" in refused(*command)
    monkeypatch.setattr(process, "total_memory", lambda: 20_000_000)
    assert "lines with --dedupe take" in refused("train", "short.txt.gz", "--mode", "lines", "--dedupe")


def test_doctor_counts_repeated_lines_in_bounded_memory(tmp_path, monkeypatch):
    lines = [*words(2000).splitlines(), "", "a" * 300]
    (tmp_path / "lines.txt").write_text("\n".join(lines), encoding="utf-8")
    names = [str(tmp_path / "lines.txt")]
    section = diagnose(names, try_compile=False).sections["lines"]
    assert section["median length"] == int(np.median([len(line) for line in lines]))
    assert section["longest"] == 300
    assert section["repeated"] == 2001 - len(set(lines) - {""})
    assert section["repeats counted in"] == "the whole text"
    monkeypatch.setattr(doctor, "MAX_LINES", 100)
    monkeypatch.setattr(text_module, "BLOCK", 1000)
    section = diagnose(names, try_compile=False).sections["lines"]
    assert section["lines"] == 2002
    assert 0 < section["repeated"] < 300
    assert section["repeats counted in"].startswith("its first 1")


# A damaged run that is sampled without a word, and a traceback where its weights are plotted.
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("command", ["sample", "eval", "inspect"])
def test_a_run_whose_weights_are_not_finite_is_refused(work, refused, command, value):
    train("words.txt", "-m", "bigram", "--steps", "3", "--out", "run")
    folder = RunDir(work / "run")
    run_id = folder.read_config().run_id
    weights = folder.read_model(run_id)
    weights["W"][1, 2] = value
    folder.write_model(weights, run_id)
    assert "NaN or infinite" in refused(command, "run")


@posix
def test_check_reads_no_more_than_the_samples(work):
    (work / "lines" / "samples.txt").unlink()
    (work / "lines" / "samples.txt").touch()
    os.truncate(work / "lines" / "samples.txt", 1 << 40)  # a sparse file
    (work / "text" / "metrics.jsonl").touch()
    os.truncate(work / "text" / "metrics.jsonl", 1 << 40)
    assert "samples.txt is damaged" in call("check", "lines").err
    assert "metrics.jsonl is damaged" in call("check", "text").err
    assert call("eval", "text").status == 0
