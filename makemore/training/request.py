"""Training request: the text, the model, and the requested settings by section."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from makemore.corpus.datasets import resolve_input
from makemore.corpus.source import Source
from makemore.errors import UserError
from makemore.settings import current_name, parse_settings
from makemore.training.pretrained import PretrainedModel

SECTIONS = ("model", "train", "corpus")


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """A training request. ``settings`` are ``section.key=value`` strings and override everything else."""

    input: str | tuple[str, ...] = ()
    """Inputs as ``makemore train`` takes them (default: the data set that ships with makemore)."""
    model: str = "transformer"
    tokenizer: str | None = None
    """Tokenizer name (None: ``char``, or the tokenizer of the resumed run)."""
    out: Path | None = None
    train: Mapping[str, Any] = field(default_factory=dict)
    """Requested fields of TrainConfig."""
    corpus: Mapping[str, Any] = field(default_factory=dict)
    """Requested fields of CorpusConfig."""
    settings: tuple[str, ...] = ()
    config: Path | None = None
    resume: bool = False
    overwrite: bool = False
    pretrained: PretrainedModel | None = None
    """Initial weights, with their tokenizer; ``tokenizer`` is then ignored."""


def open_source(request: TrainRequest) -> Source:
    """Open the input text. Raises UserError if it doesn't exist."""
    names = (request.input,) if isinstance(request.input, str) else request.input
    return resolve_input(names)


def run_folder(request: TrainRequest, source: Source) -> Path:
    """The run directory: ``--out``, or a name made from the text and the model."""
    tuned = "-tuned" if request.pretrained else ""
    return request.out or Path("checkpoints") / f"{source.stem}-{request.model}{tuned}"


def requested_settings(request: TrainRequest) -> dict[str, dict[str, Any]]:
    """Requested settings by section, under current names; --set overrides flags, which override TOML."""
    settings: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    flags = {"train": request.train, "corpus": request.corpus}
    for source in (_read_config(request.config), flags, parse_settings(list(request.settings), SECTIONS)):
        for section, values in source.items():
            settings[section].update({current_name(section, name): v for name, v in values.items()})
    return settings


def _read_config(path: Path | None) -> dict[str, dict[str, Any]]:
    """Read a TOML file by section. Raises UserError if missing, malformed, or with unknown sections."""
    if path is None:
        return {name: {} for name in SECTIONS}
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not TOML: {error}") from None
    for name, section in data.items():
        if name not in SECTIONS or not isinstance(section, dict):
            raise UserError(f"{path}: {name!r} is not a section; use [{'], ['.join(SECTIONS)}]")
    return {name: dict(data.get(name, {})) for name in SECTIONS}
