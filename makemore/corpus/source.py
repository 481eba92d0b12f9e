"""What INPUT may be: a file, compressed or not, a folder, a glob, standard input, or a URL."""

from __future__ import annotations

import glob
import gzip
import http.client
import sys
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from makemore.corpus.decoding import BLOCK, read_file
from makemore.errors import UserError

PACKED = (".gz", ".zst")
URL_TIMEOUT = 30.0
"""Seconds without an answer after which a server is given up."""


@dataclass(frozen=True)
class Source:
    """Where a text's bytes come from: one place or several, read one after the other."""

    names: tuple[str, ...]
    """As the user wrote them."""
    parts: tuple[str, ...]
    skipped: int = 0
    """Files of a folder that aren't text."""

    @property
    def name(self) -> str:
        more = f" and {len(self.names) - 1} more" if len(self.names) > 1 else ""
        return ("standard input" if self.names[0] == "-" else self.names[0]) + more

    @property
    def stem(self) -> str:
        """A short name for runs."""
        if self.names[0] == "-":
            return "stdin"
        path = PurePosixPath(self.names[0].replace("\\", "/"))
        stem = PurePosixPath(path.name.removesuffix(path.suffix) if path.suffix in PACKED else path.name).stem
        return "".join(c for c in stem if c not in "*?[]:") or "text"

    @property
    def plain(self) -> Path | None:
        """The file that holds the bytes as they are, where there is one."""
        part = self.parts[0]
        single = len(self.parts) == 1 and part != "-" and "://" not in part
        return Path(part) if single and Path(part).suffix not in PACKED else None

    def saved(self) -> list[str]:
        """How a run names it: absolute paths, so that it is found again from elsewhere."""
        return [name if name == "-" or "://" in name else str(Path(name).absolute()) for name in self.names]


def find_source(*names: str) -> Source:
    """What files, folders, globs, URLs or ``-`` stand for. Raises UserError where nothing is there."""
    found = [_find(name) for name in names]
    if len(names) > 1 and "-" in names:
        raise UserError("standard input (-) goes alone")
    parts = tuple(part for paths, _ in found for part in paths)
    return Source(names, parts, sum(skipped for _, skipped in found))


def recorded_source(paths: Sequence[str]) -> Source:
    """The local files that a run's ``config.json`` names, for reading its training text again.

    Anyone may have written that file, so nothing but regular local files is opened: no URLs, standard
    input, network shares, named pipes or devices.

    Raises:
        UserError: a path is missing, or is not a local file, directory or glob.
    """
    for path in paths:
        if path == "-" or "::" in path or "://" in path or path.startswith(("//", "\\\\")):
            raise UserError(
                f"the run was trained on {path!r}, which is not a local file; give a copy of its text as FILE"
            )
        if not (Path(path).is_file() or Path(path).is_dir() or glob.has_magic(path)):
            raise UserError(
                f"the run's training text {path!r} is missing or is not a regular file; "
                "give a copy of it as FILE"
            )
    return find_source(*paths)


def _find(name: str) -> tuple[tuple[str, ...], int]:
    if name == "-":
        return (name,), 0
    if "://" in name:
        return (_checked_url(name),), 0
    path = Path(name)
    try:
        if _is_run(path):
            raise UserError(f"{name} is a run; give a text")
        if path.is_dir():
            return _texts(name, sorted(_walk(path)))
        if not path.exists() and glob.has_magic(name):
            return _texts(name, sorted(map(Path, glob.glob(name, recursive=True))))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"can't read {name}: {reason}") from None
    return (name,), 0


def _checked_url(url: str) -> str:
    """``url`` itself. Raises UserError for anything but plain http and https.

    Other protocols reach local files, and libraries that open chains of them (``a::b``) can run commands.
    """
    if not url.startswith(("http://", "https://")) or "::" in url:
        raise UserError(f"can't read {url}: only http:// and https:// URLs are supported; download it first")
    return url


def _is_run(folder: Path) -> bool:
    return (folder / "model.safetensors").is_file()


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a folder, but for hidden ones and what belongs to runs."""
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if not _is_run(path):
                yield from _walk(path)
        else:
            yield path


def _texts(name: str, paths: list[Path]) -> tuple[tuple[str, ...], int]:
    files = [path for path in paths if path.is_file()]
    texts = [path for path in files if path.suffix in PACKED or not _binary(path)]
    if not texts:
        raise UserError(f"{name}: no text files there")
    return tuple(map(str, texts)), len(files) - len(texts)


def _binary(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return b"\0" in file.read(8192)
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None


def read_part(part: str) -> Iterator[bytes]:
    """One place's bytes in blocks, unpacked. Raises UserError where it can't be read."""
    if part == "-":
        yield from _read(sys.stdin.buffer, "standard input")
    elif "://" in part:
        yield from _read_url(part)
    elif Path(part).suffix == ".gz":
        with _opened(Path(part), gzip.open) as file:
            yield from _read(file, part)
    elif Path(part).suffix == ".zst":
        with _opened(Path(part), _zstandard_open) as file:
            yield from _read(file, part)
    else:
        yield from read_file(Path(part))


def _opened(path: Path, opener: Any) -> IO[bytes]:
    try:
        return opener(path, "rb")
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror or error}") from None


def _zstandard_open(path: Any, mode: str) -> IO[bytes]:
    try:
        import zstandard
    except ImportError:
        raise UserError(f"{path}: to read .zst files install zstandard (pip install zstandard)") from None
    return zstandard.open(path, mode)


def _read(file: Any, name: str) -> Iterator[bytes]:
    try:
        while block := file.read(BLOCK):
            yield block
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"can't read {name}: {error}") from None
    except Exception as error:  # zstandard has an error of its own, in a module named after its version
        if type(error).__name__ == "ZstdError":
            raise UserError(f"can't read {name}: {error}") from None
        raise


def _read_url(url: str) -> Iterator[bytes]:
    """An http or https URL in blocks, unpacked by its name's suffix."""
    suffix = PurePosixPath(urllib.parse.urlsplit(url).path).suffix
    try:
        with urllib.request.urlopen(_checked_url(url), timeout=URL_TIMEOUT) as response:
            if suffix == ".gz":
                with gzip.open(response) as file:
                    yield from _read(file, url)
            elif suffix == ".zst":
                yield from _read(_zstandard_open(response, "rb"), url)
            else:
                yield from _read(response, url)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(f"can't read {url}: {getattr(error, 'reason', error)}") from None
