"""Named data sets; resolve INPUT to files, data sets or the bundled list of first names."""

from __future__ import annotations

import glob
import hashlib
import http.client
import os
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from makemore.corpus.source import Source, resolve_source
from makemore.errors import UserError, unknown_name

BUNDLED = "first-names"


@dataclass(frozen=True)
class Dataset:
    """A downloadable text, pinned to a commit and a checksum."""

    url: str
    sha256: str
    size: int
    about: str


DATASETS = {
    "names": Dataset(
        "https://raw.githubusercontent.com/karpathy/makemore/"
        "988aa59e4d8fefa526d06f3b453ad116258398d4/names.txt",
        "0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d",
        228145,
        "32,033 first names, one per line (the data set of the lectures)",
    ),
    "shakespeare": Dataset(
        "https://raw.githubusercontent.com/karpathy/char-rnn/"
        "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        1115394,
        "1.1 MB of Shakespeare's plays (tinyshakespeare)",
    ),
}


def bundled_file() -> Path:
    """Path of the bundled list of first names, in a checkout or an installed wheel."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "data", package.parent / "data"):
        if (folder / f"{BUNDLED}.txt").is_file():
            return folder / f"{BUNDLED}.txt"
    raise UserError(f"{BUNDLED}.txt is missing from this installation; reinstall makemore")


def download_folder() -> Path:
    """Directory for ``makemore data``: ``MAKEMORE_DATA``, or ``./data``."""
    return Path(os.environ.get("MAKEMORE_DATA") or "data")


def resolve_input_file(name: str | None) -> Path:
    """Resolve INPUT to a file: the bundled list if None, else a path or a data set's name.

    Raises UserError if the data set isn't downloaded, or the name is unknown.
    """
    if name is None or name == BUNDLED:
        return bundled_file()
    if name in DATASETS and not Path(name).is_file():
        for folder in (download_folder(), Path("data")):
            if (folder / f"{name}.txt").is_file():
                return folder / f"{name}.txt"
        raise UserError(f"data set {name!r} isn't downloaded; get it with: makemore data {name}")
    if not os.path.exists(name) and not Path(name).suffix and os.sep not in name:
        known = unknown_name("data set", name, [BUNDLED, *DATASETS])
        raise UserError(f"no such file, and {known}")
    return Path(name)


def resolve_input(names: Sequence[str]) -> Source:
    """Resolve INPUT: the bundled list if empty, else files, directories, globs, URLs, ``-`` or data sets.

    Raises UserError if a data set isn't downloaded, or there is no text.
    """
    if not names:
        return resolve_source(str(bundled_file()))
    return resolve_source(*(name if _is_special(name) else str(resolve_input_file(name)) for name in names))


def _is_special(name: str) -> bool:
    """Whether a name is standard input, a URL or a glob."""
    return name == "-" or "://" in name or glob.has_magic(name)


def download(name: str, folder: Path | None = None) -> tuple[Path, bool]:
    """Download a data set unless it exists; returns its path and whether it was downloaded.

    Raises UserError for an unknown name, a network failure, a checksum mismatch (nothing is saved), or
    a different file at the path (nothing is overwritten).
    """
    if name == BUNDLED:
        raise UserError(f"{name} comes with makemore; train on it with: makemore train {name}")
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    dataset = DATASETS[name]
    path = (folder or download_folder()) / f"{name}.txt"
    if path.exists():
        is_same_size = path.is_file() and path.stat().st_size == dataset.size
        if not is_same_size or hashlib.sha256(path.read_bytes()).hexdigest() != dataset.sha256:
            raise UserError(f"{path} exists but is not the pinned file; move it away first")
        return path, False
    from makemore.runtime.files import write_bytes  # imports torch

    data = _fetch(dataset)
    if hashlib.sha256(data).hexdigest() != dataset.sha256:
        raise UserError(f"the download of {dataset.url} is not the pinned file; nothing was saved")
    write_bytes(path, data)
    return path, True


def _fetch(dataset: Dataset) -> bytes:
    """Download a data set's bytes, stopping once there are more than the pinned size."""
    try:
        with urllib.request.urlopen(dataset.url, timeout=30) as response:
            return response.read(dataset.size + 1)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"can't download {dataset.url}: {reason}; check the network") from None
