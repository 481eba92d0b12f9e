"""Resolve INPUT: a file (plain, .gz, .zst), directory, glob, URL or standard input."""

from __future__ import annotations

import contextlib
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

from makemore.corpus.decoding import BLOCK
from makemore.errors import UserError

COMPRESSED_SUFFIXES = (".gz", ".zst")
ZST_BLOCK = 1 << 12
"""Compressed bytes to decompress at a time; they become 128 MB at most."""
URL_TIMEOUT = 30.0
"""Seconds to wait for a server's answer."""


@dataclass(frozen=True)
class Source:
    """Origin of a text's bytes: files, URLs or standard input, read in sequence."""

    names: tuple[str, ...]
    """The inputs as the user wrote them."""
    parts: tuple[str, ...]
    n_skipped: int = 0
    """Number of binary files that were left out."""
    n_repeated: int = 0
    """Number of paths left out because another path names the same file, as links do."""

    @property
    def name(self) -> str:
        more = f" and {len(self.names) - 1} more" if len(self.names) > 1 else ""
        return ("standard input" if self.names[0] == "-" else self.names[0]) + more

    @property
    def stem(self) -> str:
        """Short name for run directories."""
        if self.names[0] == "-":
            return "stdin"
        path = PurePosixPath(self.names[0].replace("\\", "/"))
        stem = PurePosixPath(path.stem).stem if path.suffix in COMPRESSED_SUFFIXES else path.stem
        return "".join(c for c in stem if c.isprintable() and c not in "*?[]:") or "text"

    @property
    def plain_file(self) -> Path | None:
        """Path of a source that is a single uncompressed local file; None for other sources."""
        part = self.parts[0]
        single = len(self.parts) == 1 and part != "-" and "://" not in part
        return Path(part) if single and Path(part).suffix not in COMPRESSED_SUFFIXES else None

    def absolute_names(self) -> list[str]:
        """The inputs as stored in a run, with absolute paths."""
        return [name if name == "-" or "://" in name else str(Path(name).absolute()) for name in self.names]


def resolve_source(*names: str) -> Source:
    """Resolve files, directories, globs, URLs or ``-``. Raises UserError if there is no text."""
    resolved = [_resolve(name) for name in names]
    if len(names) > 1 and "-" in names:
        raise UserError("standard input (-) can't be combined with other inputs; pass it alone")
    parts = [part for paths, _ in resolved for part in paths]
    unique = _real_files(parts)
    skipped = sum(skipped for _, skipped in resolved)
    return Source(names, tuple(unique), skipped, len(parts) - len(unique))


def _real_files(parts: Sequence[str]) -> list[str]:
    """Each file once, under its first name: links in directories and globs may name it again."""
    files: dict[object, str] = {}
    for part in parts:
        identity: object = part
        if part != "-" and "://" not in part:
            with contextlib.suppress(OSError, ValueError):
                info = Path(part).stat()
                identity = (info.st_dev, info.st_ino)
        files.setdefault(identity, part)
    return list(files.values())


def resolve_recorded_source(paths: Sequence[str]) -> Source:
    """Resolve the local files that a run's ``config.json`` names, to reread its training text.

    The file is untrusted: only regular local files are opened, no URLs, standard input, network shares,
    named pipes or devices.

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
    return resolve_source(*paths)


def _resolve(name: str) -> tuple[tuple[str, ...], int]:
    if name == "-":
        return (name,), 0
    if "://" in name:
        return (_checked_url(name),), 0
    path = Path(name)
    try:
        if _is_run(path):
            raise UserError(f"{name} is a run directory; give a text")
        if path.is_dir():
            return _text_files(name, sorted(_walk(path, set())))
        if not path.exists() and glob.has_magic(name):
            return _text_files(name, _glob(name))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"can't read {name}: {reason}") from None
    return (name,), 0


def _checked_url(url: str) -> str:
    """Return ``url``. Raises UserError unless it is plain http or https.

    Other protocols reach local files, and libraries that open chained ones (``a::b``) can run commands.
    """
    if not url.startswith(("http://", "https://")) or "::" in url:
        raise UserError(f"can't read {url}: only http:// and https:// URLs are supported; download it first")
    return url


def _is_run(folder: Path) -> bool:
    return (folder / "model.safetensors").is_file()


def _walk(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Files below a directory, except hidden files and runs; ``seen``: directories that were read already,
    because links can lead back to them."""
    info = folder.stat()
    if (info.st_dev, info.st_ino) in seen:
        return
    seen.add((info.st_dev, info.st_ino))
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_symlink(), path)):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if not _is_run(path):
                yield from _walk(path, seen)
        else:
            yield path


def _glob(pattern: str) -> list[Path]:
    """Matching paths except hidden ones. ``**`` doesn't follow links to directories, they may form loops."""
    anchor = Path(pattern).anchor
    root, relative = Path(anchor or "."), pattern[len(anchor) :]
    literal = set(Path(relative).parts)
    return sorted(
        path
        for path in root.glob(relative)
        if not any(part.startswith(".") and part not in literal for part in path.relative_to(root).parts)
    )


def _text_files(name: str, paths: list[Path]) -> tuple[tuple[str, ...], int]:
    files = [path for path in paths if path.is_file()]
    texts = [path for path in files if path.suffix in COMPRESSED_SUFFIXES or not _is_binary(path)]
    if not texts:
        raise UserError(f"{name}: no text files found; give a text file or a directory of them")
    return tuple(map(str, texts)), len(files) - len(texts)


def _is_binary(path: Path) -> bool:
    with _reading(path) as file:
        return b"\0" in file.read(8192)


def read_part(part: str) -> Iterator[bytes]:
    """Read one part in blocks of bytes, decompressed. Raises UserError if it can't be read."""
    if part == "-":
        yield from _read(sys.stdin.buffer, "standard input")
    elif "://" in part:
        yield from _read_url(part)
    else:
        with _reading(Path(part)) as file:
            yield from _decompress(file, Path(part).suffix, part)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    """An open file. Raises UserError if it is missing, a directory or unreadable."""
    try:
        if path.is_dir():
            raise UserError(f"{path} is a directory; give a text file")
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"can't read {path}: {getattr(error, 'strerror', None) or error}") from None


def _decompress(file: Any, suffix: str, name: str) -> Iterator[bytes]:
    if suffix == ".gz":
        with gzip.open(file) as unzipped:
            yield from _read(unzipped, name)
    elif suffix == ".zst":
        yield from _read_zst(file, name)
    else:
        yield from _read(file, name)


def _read(file: Any, name: str) -> Iterator[bytes]:
    try:
        while block := file.read(BLOCK):
            yield block
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged_error(name, error) from None


def _damaged_error(name: str, problem: object) -> UserError:
    advice = ""
    if name.endswith(COMPRESSED_SUFFIXES):
        advice = "; replace the file, or leave out damaged files with --skip-damaged"
    return UserError(f"can't read {name}: {getattr(problem, 'strerror', None) or problem}{advice}")


def _read_zst(file: Any, name: str) -> Iterator[bytes]:
    """Decompress all zstandard frames. Unlike zstandard's own reader, it refuses an incomplete one."""
    try:
        import zstandard
    except ImportError:
        raise UserError(f"{name}: .zst files need zstandard; run: pip install zstandard") from None
    frame, rest = None, b""
    try:
        while block := rest or file.read(ZST_BLOCK):
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            yield frame.decompress(block)
            rest = frame.unused_data
            frame = None if frame.eof else frame
    except (OSError, zstandard.ZstdError) as error:
        raise _damaged_error(name, error) from None
    if frame is not None:
        raise _damaged_error(name, "the file is incomplete")


def _read_url(url: str) -> Iterator[bytes]:
    """Read an http or https URL in blocks of bytes, decompressed by its suffix."""
    suffix = PurePosixPath(urllib.parse.urlsplit(url).path).suffix
    try:
        with urllib.request.urlopen(_checked_url(url), timeout=URL_TIMEOUT) as response:
            yield from _decompress(response, suffix, url)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(f"can't read {url}: {getattr(error, 'reason', error)}") from None
