"""Fuzz targets: run directories and texts of arbitrary bytes must be read or refused with a UserError, and
requests to the play server answered.

Hypothesis feeds them in the tests, a coverage-guided fuzzer in ``benchmarks/fuzz.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import struct
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from makemore.corpus.source import resolve_source
from makemore.corpus.splits import make_corpus
from makemore.corpus.text import read_source
from makemore.errors import UserError
from makemore.play.server import make_app
from makemore.runs.run import load
from makemore.runs.verification import check_run
from makemore.runtime.files import json_digest
from makemore.settings import CorpusConfig
from makemore.training.request import TrainRequest
from makemore.training.train import train

Item = TypeVar("Item")
MODES = ("auto", "lines", "text")
ENCODINGS = ("utf-8", "utf-16", "utf-8-sig", "latin-1", "cp1252", "shift_jis", "utf-7", "idna", "zlib", "x")
ENCODINGS += ("utf-8:replace", "utf-16:replace", "x:replace")
SUFFIXES = (".txt", ".gz", ".zst", "")
TOKENIZERS = ("char", "byte", "bpe:260")
SPLITS = ("auto", "0.8,0.1,0.1", "1,0,0", "0.5,0.5,0", "0,0,1")
MAX_TEXT_BYTES = 1 << 14
"""Longer texts reach no other code."""


class Choices:
    """Choices decoded from bytes in order; past the end of the bytes, each choice is the first item."""

    def __init__(self, data: bytes) -> None:
        self.data, self.offset = data, 0

    def number(self, size: int = 1) -> int:
        self.offset += size
        return int.from_bytes(self.data[self.offset - size : self.offset], "little")

    def pick(self, items: Sequence[Item]) -> Item:
        return items[self.number(1 if len(items) <= 256 else 2) % len(items)]

    def rest(self) -> bytes:
        return self.data[self.offset :]


def json_paths(value: Any, path: tuple = ()) -> list[tuple]:
    """Paths (tuples of keys and indices) of all values within a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for key, child in items for p in json_paths(child, (*path, key)))]


def replace_value(value: Any, path: tuple, new: Any) -> None:
    """Replace the part of a JSON value at a path, or delete it if ``new`` is ``...``."""
    new = copy.deepcopy(new)  # a later change may edit it
    for key in path[:-1]:
        value = value[key]
    if new is ...:
        del value[path[-1]]
    else:
        value[path[-1]] = new


WRONG_VALUES: list[Any] = [
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


def check_text(data: bytes, folder: Path) -> None:
    """Read and encode a text as ``train`` does; it must decode to the same text or raise a UserError."""
    choices = Choices(data)
    suffix, encoding, tokenizer = choices.pick(SUFFIXES), choices.pick(ENCODINGS), choices.pick(TOKENIZERS)
    config = CorpusConfig(
        mode=choices.pick(MODES),
        split=choices.pick(SPLITS),
        encoding=encoding,
        dedupe=bool(choices.number() & 1),
    )
    path = folder / f"text{suffix}"
    path.write_bytes(choices.rest()[:MAX_TEXT_BYTES])
    with contextlib.suppress(UserError):
        source = read_source(resolve_source(str(path)), CorpusConfig(encoding=encoding))
        content = "".join(source.pieces())
        assert len(content) == source.chars
        assert "\r" not in content
        corpus = make_corpus(source, config, tokenizer)
        decoded = "".join(corpus.tokenizer.decode(s.tokens_N.tolist()) for s in corpus.splits.values())
        lines = "".join(line for line in content.split("\n") if line.strip())  # blank lines are skipped
        expected = content if corpus.mode == "text" else lines
        n_unknown = sum(
            int(s.unknown_chars_D.sum()) for s in corpus.splits.values() if s.unknown_chars_D is not None
        )
        n_decoded = len(decoded) if corpus.mode == "text" else len(decoded.replace("\n", ""))
        assert n_decoded == len(expected) - n_unknown, (corpus.mode, n_decoded, len(expected), n_unknown)


class RestorableRun:
    """A run directory that can be damaged and restored repeatedly."""

    def __init__(self, folder: Path) -> None:
        words = folder / "words.txt"
        words.write_text("".join(f"{a}{b}\n" for a in "abcd" for b in "efgh") * 3, encoding="utf-8")
        self.folder = folder / "run"
        request = TrainRequest(
            input=str(words),
            model="bigram",
            out=self.folder,
            train={"steps": 2, "device": "cpu", "compile": "no"},
        )
        train(request)
        self.request = request
        self.files = {p.relative_to(self.folder): p.read_bytes() for p in self._all()}
        self.names = sorted(self.files)

    def _all(self) -> list[Path]:
        return [p for p in self.folder.rglob("*") if p.is_file()]

    def restore(self) -> None:
        for path in self._all():
            if path.relative_to(self.folder) not in self.files:
                path.unlink()
        for name, data in self.files.items():
            path = self.folder / name
            if not path.is_file() or path.read_bytes() != data:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)

    def damage(self, choices: Choices) -> Path:
        """Overwrite bytes of a file, or change a value and keep the checksum valid; returns the file."""
        name = choices.pick(self.names)
        path, method = self.folder / name, choices.number() % 3
        if method and name.suffix == ".json":
            path.write_bytes(self._json_with_valid_checksum(name, choices))
        elif method and name.suffix == ".safetensors":
            path.write_bytes(self._changed_header(name, choices))
        elif choices.number() & 1:
            start = choices.number(2) % (len(self.files[name]) + 1)
            new = choices.rest()
            path.write_bytes(self.files[name][:start] + new + self.files[name][start + len(new) :])
        else:
            path.write_bytes(choices.rest())
        return path

    def _json_with_valid_checksum(self, name: Path, choices: Choices) -> bytes:
        payload = json.loads(self.files[name])
        del payload["sha256"]
        for _ in range(1 + choices.number() % 2):
            paths = json_paths(payload)[1:]
            path = paths[choices.number(2) % len(paths)]
            new = choices.pick([*WRONG_VALUES, "from data"])
            if new == "from data":
                value = choices.rest().decode("utf-8", errors="replace")
                with contextlib.suppress(ValueError, RecursionError):
                    value = json.loads(value)
                new = value
            replace_value(payload, path, new)
        payload = json.loads(json.dumps(payload))
        payload = {**payload, "sha256": json_digest(payload)}
        return (json.dumps(payload, indent=1, ensure_ascii=False) + "\n").encode(errors="surrogatepass")

    def _changed_header(self, name: Path, choices: Choices) -> bytes:
        """The tensor file with one value of its header changed."""
        data = self.files[name]
        size = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + size])
        paths = json_paths(header)[1:]
        replace_value(
            header,
            paths[choices.number(2) % len(paths)],
            choices.pick([*WRONG_VALUES, 8, "F64", "U8", "BOOL"]),
        )
        encoded = json.dumps(header).encode()
        return struct.pack("<Q", len(encoded)) + encoded + data[8 + size :]


def check_run_directory(data: bytes, run_dir: RestorableRun) -> None:
    """Check, load and resume a run with one corrupted file; each must succeed or raise a UserError."""
    choices = Choices(data)
    resume = choices.number() < 16  # slower than the rest
    path = run_dir.damage(choices)
    try:
        with contextlib.suppress(UserError):
            check_run(run_dir.folder)
        with contextlib.suppress(UserError):
            load(run_dir.folder, "cpu")
        if resume and path.name != "metrics.jsonl":
            with contextlib.suppress(UserError):
                train(
                    TrainRequest(input=run_dir.request.input, model="bigram", out=run_dir.folder, resume=True)
                )
    finally:
        run_dir.restore()


ASGIApp = Callable[..., Awaitable[None]]
TOKEN = "token"
PATHS = ("/api/predict", "/api/sample", "/api/runs", "/nowhere")
QUERY = {
    "run": "lines",
    "text": "ba",
    "temperature": 0.5,
    "top_k": 3,
    "top_p": 0.9,
    "min_p": 0.1,
    "at": 1,
} | {
    "n": 2,
    "seed": 3,
    "max_new_tokens": 5,
}
QUERY_VALUES = [*WRONG_VALUES[1:], 1, 5e-324, -1e-9, 2**63, 10**400, "text", "d\ud800", "ba\r\n\0e"]
BODIES = [
    b"",
    b"[" * 100_000,
    b'{"run":' * 50_000,
    b"\xff",
    b"1" * 5000,
    b"NaN",
    b'{"at": 1e999}',
    b"x" * 1_000_001,
]


def play_app(folder: Path) -> ASGIApp:
    """The play server's app with a run ``lines``."""
    words = folder / "words.txt"
    words.write_text("".join(f"{a}{b}\n" for a in "abcd" for b in "efgh") * 3, encoding="utf-8")
    settings = {"steps": 2, "device": "cpu", "compile": "no"}
    train(TrainRequest(input=str(words), model="mlp", out=folder / "lines", train=settings))
    return make_app({"lines": load(folder / "lines", "cpu")}, TOKEN)


def respond(app: ASGIApp, method: str, path: str, body: bytes, is_cut: bool) -> tuple[int, bytes]:
    """Status and body of an app's response; ``is_cut``: the client disconnects before the body's end."""
    sent: list[dict[str, Any]] = []
    received: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": is_cut}]

    async def receive() -> dict[str, Any]:
        return received.pop() if received else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"authorization", f"Bearer {TOKEN}".encode())]
    scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b""}
    asyncio.run(app({**scope, "asgi": {"version": "3.0", "spec_version": "2.4"}}, receive, send))  # type: ignore[arg-type]
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def check_request(data: bytes, app: ASGIApp) -> None:
    """Send a request to the app of ``play_app``; it must answer with a result or a message of one line."""
    choices = Choices(data)
    method, path = choices.pick(("POST", "GET", "HEAD")), choices.pick(PATHS)
    is_cut, kind = choices.number() % 8 == 7, choices.number() % 4
    if kind > 1:
        query = dict(QUERY)
        for _ in range(1 + choices.number() % 3):
            query[choices.pick(list(QUERY))] = choices.pick(QUERY_VALUES)
        body = json.dumps(query).encode()
    else:
        body = choices.pick(BODIES) if kind else choices.rest()
    status, answer = respond(app, method, path, body, is_cut)
    assert status in (200, 400, 404, 405, 413, 422), status
    if status == 200 and path != "/api/sample" and method != "HEAD":
        json.loads(answer)
    if status in (400, 413, 422):
        assert json.loads(answer)["error"].isprintable()
