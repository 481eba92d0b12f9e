"""What bytes of a stranger can do to the readers of run directories and of texts: be read, or be refused.

The same two functions are fed by Hypothesis in the tests and by a coverage-guided fuzzer in
``benchmarks/fuzz.py``.
"""

from __future__ import annotations

import contextlib
import copy
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from makemore.corpus.source import resolve_source
from makemore.corpus.splits import make_corpus
from makemore.corpus.text import read_source
from makemore.errors import UserError
from makemore.runs.run import load
from makemore.runs.verification import check_run
from makemore.runtime.files import json_digest
from makemore.settings import CorpusConfig
from makemore.training.request import TrainRequest
from makemore.training.train import train

Item = TypeVar("Item")
MODES = ("auto", "lines", "text")
ENCODINGS = ("utf-8", "utf-16", "utf-8-sig", "latin-1", "cp1252", "shift_jis", "utf-7", "idna", "zlib", "x")
SUFFIXES = (".txt", ".gz", ".zst", "")
TOKENIZERS = ("char", "byte", "bpe:260")
SPLITS = ("auto", "0.8,0.1,0.1", "1,0,0", "0.5,0.5,0", "0,0,1")
MOST = 1 << 14
"""Bytes of a text; longer ones reach no other code."""


class Choices:
    """Bytes as decisions, the first ones first; where they end, the first of everything."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def number(self, size: int = 1) -> int:
        self.at += size
        return int.from_bytes(self.data[self.at - size : self.at], "little")

    def of(self, items: Sequence[Item]) -> Item:
        return items[self.number(1 if len(items) <= 256 else 2) % len(items)]

    def rest(self) -> bytes:
        return self.data[self.at :]


def places(value: Any, at: tuple = ()) -> list[tuple]:
    """Every place in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, part in inner for place in places(part, (*at, key)))]


def put(value: Any, at: tuple, new: Any) -> None:
    """Something else in a place of a JSON value; ``...`` for nothing."""
    new = copy.deepcopy(new)  # a second change may be made within it
    for key in at[:-1]:
        value = value[key]
    if new is ...:
        del value[at[-1]]
    else:
        value[at[-1]] = new


WRONG: list[Any] = [
    ...,
    None,
    True,
    -1,
    0,
    1e308,
    10**30,
    "",
    "x" * 3000,
    "../..",
    "\x1b[31m\0",
    [],
    [[]],
    {},
    {"$dict": 1},
    {"$tensor": "x"},
]


def text(data: bytes, folder: Path) -> None:
    """Read a text as ``train`` does. Anything but success or a UserError is a bug, as is a text that isn't
    what was read."""
    choices = Choices(data)
    suffix, encoding, tokenizer = choices.of(SUFFIXES), choices.of(ENCODINGS), choices.of(TOKENIZERS)
    config = CorpusConfig(choices.of(MODES), choices.of(SPLITS), encoding, bool(choices.number() & 1))
    path = folder / f"text{suffix}"
    path.write_bytes(choices.rest()[:MOST])
    with contextlib.suppress(UserError):
        found = read_source(resolve_source(str(path)), encoding)
        said = "".join(found.pieces())
        assert len(said) == found.chars
        assert "\r" not in said
        corpus = make_corpus(found, config, tokenizer)
        whole = "".join(corpus.tokenizer.decode(split.tokens_N.tolist()) for split in corpus.splits.values())
        lines = "".join(line for line in said.split("\n") if line.strip())  # blank ones are left out
        kept = said if corpus.mode == "text" else lines
        lost = sum(
            int(s.unknown_chars_D.sum()) for s in corpus.splits.values() if s.unknown_chars_D is not None
        )
        spelled = len(whole) if corpus.mode == "text" else len(whole.replace("\n", ""))
        assert spelled == len(kept) - lost, (corpus.mode, spelled, len(kept), lost)


class Victim:
    """A run directory that is damaged and made good again, over and over."""

    def __init__(self, folder: Path) -> None:
        words = folder / "words.txt"
        words.write_text("".join(f"{a}{b}\n" for a in "abcd" for b in "efgh") * 3, encoding="utf-8")
        self.folder = folder / "run"
        request = TrainRequest(
            str(words), "bigram", out=self.folder, train={"steps": 2, "device": "cpu", "compile": "no"}
        )
        train(request)
        self.request = request
        self.files = {p.relative_to(self.folder): p.read_bytes() for p in self._all()}
        self.names = sorted(self.files)

    def _all(self) -> list[Path]:
        return [p for p in self.folder.rglob("*") if p.is_file()]

    def restore(self) -> None:
        """As it was before anything was done to it."""
        for path in self._all():
            if path.relative_to(self.folder) not in self.files:
                path.unlink()
        for name, data in self.files.items():
            path = self.folder / name
            if not path.is_file() or path.read_bytes() != data:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)

    def damage(self, choices: Choices) -> Path:
        """Other bytes in place of a file, or another value with a checksum that is right."""
        name = choices.of(self.names)
        path, how = self.folder / name, choices.number() % 3
        if how and name.suffix == ".json":
            path.write_bytes(self._sealed_json(name, choices))
        elif how and name.suffix == ".safetensors":
            path.write_bytes(self._header(name, choices))
        elif choices.number() & 1:
            at = choices.number(2) % (len(self.files[name]) + 1)
            new = choices.rest()
            path.write_bytes(self.files[name][:at] + new + self.files[name][at + len(new) :])
        else:
            path.write_bytes(choices.rest())
        return path

    def _sealed_json(self, name: Path, choices: Choices) -> bytes:
        payload = json.loads(self.files[name])
        del payload["sha256"]
        for _ in range(1 + choices.number() % 2):
            found = places(payload)[1:]
            at = found[choices.number(2) % len(found)]
            new = choices.of([*WRONG, "given"])
            if new == "given":
                given = choices.rest().decode("utf-8", errors="replace")
                with contextlib.suppress(ValueError, RecursionError):
                    given = json.loads(given)
                new = given
            put(payload, at, new)
        payload = json.loads(json.dumps(payload))
        payload = {**payload, "sha256": json_digest(payload)}
        return (json.dumps(payload, indent=1, ensure_ascii=False) + "\n").encode(errors="surrogatepass")

    def _header(self, name: Path, choices: Choices) -> bytes:
        """A tensor file whose header was changed in one place."""
        data = self.files[name]
        size = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + size])
        found = places(header)[1:]
        put(header, found[choices.number(2) % len(found)], choices.of([*WRONG, 8, "F64", "U8", "BOOL"]))
        said = json.dumps(header).encode()
        return struct.pack("<Q", len(said)) + said + data[8 + size :]


def run_directory(data: bytes, victim: Victim) -> None:
    """Check, load and resume a run with one file of a stranger's. Anything but success or a UserError is a
    bug."""
    choices = Choices(data)
    resume = choices.number() < 16  # slower than the rest
    path = victim.damage(choices)
    try:
        with contextlib.suppress(UserError):
            check_run(victim.folder)
        with contextlib.suppress(UserError):
            load(victim.folder, "cpu")
        if resume and path.name != "metrics.jsonl":
            with contextlib.suppress(UserError):
                train(TrainRequest(victim.request.input, "bigram", out=victim.folder, resume=True))
    finally:
        victim.restore()
