"""A trained run in memory: its model, tokenizer and training text."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from makemore.corpus.decoding import UnusableTextError
from makemore.corpus.documents import Documents, make_documents
from makemore.corpus.mode import Mode
from makemore.corpus.source import Source, resolve_recorded_source, resolve_source
from makemore.corpus.splits import Corpus, make_corpus
from makemore.corpus.text import Text, read_source
from makemore.errors import UserError
from makemore.models import MODELS
from makemore.models.base import LanguageModel
from makemore.runs.directory import RunDir, find_run
from makemore.runs.schema import RunRecord
from makemore.runtime.device import pick_device
from makemore.runtime.files import require_finite, user_format_errors
from makemore.runtime.memory import construct_model, memory_limit_for
from makemore.tokenizers import Tokenizer, tokenizer_from_dict
from makemore.version import __version__


@dataclass(frozen=True)
class Run:
    """A loaded run directory."""

    folder: RunDir
    config: RunRecord
    tokenizer: Tokenizer
    model: LanguageModel

    @property
    def name(self) -> str:
        return self.folder.path.name

    def sibling(self, suffix: str) -> Path:
        """A sibling path of the run directory: its name plus a suffix."""
        return self.folder.path.with_name(self.name + suffix)

    @property
    def mode(self) -> Mode:
        mode = self.config.corpus.mode
        return "text" if mode == "text" else "lines"

    def text(self, path: Path | None = None) -> Text:
        """Read the training text, or the text at ``path``. Raises UserError if missing or unreadable."""
        source = self.source() if path is None else resolve_source(str(path))
        return read_source(source, self.config.corpus)

    def source(self) -> Source:
        """The training text's source. Raises UserError unless it is existing local files."""
        return resolve_recorded_source(self.config.text.paths)

    def documents(self, path: Path | None = None) -> Documents:
        """Split the training text, or the text at ``path``, as in training.

        Raises UserError if the training text is missing or has changed.
        """
        with self._reporting_changes(path):
            documents = make_documents(self.text(path), self.config.corpus)
        if path is None:
            self._check_digests({name: documents.digest(name) for name in documents.spans})
        return documents

    def corpus(self, path: Path | None = None) -> Corpus:
        """Split and tokenize the text; like ``documents`` otherwise."""
        with self._reporting_changes(path):
            corpus = make_corpus(self.text(path), self.config.corpus, self.tokenizer)
        if path is None:
            self._check_digests(corpus.digests)
        return corpus

    def _check_digests(self, digests: dict[str, str]) -> None:
        if digests != self.config.text.digests:
            raise self._changed_error()

    @contextlib.contextmanager
    def _reporting_changes(self, path: Path | None) -> Iterator[None]:
        """Report a training text that has become empty or too short as changed, not as unusable."""
        try:
            yield
        except UnusableTextError:
            if path is not None:
                raise
            raise self._changed_error() from None

    def _changed_error(self) -> UserError:
        source = self.config.text.paths[0]
        return UserError(f"{source} has changed since {self.name} was trained; name a file to score")


def is_fitted_on(config: RunRecord, split: str) -> bool:
    """Whether a run's config is a mixture's whose constant weights were fitted on (part of) this split. On
    val, a gated mixture uses gates that were not fitted there."""
    return bool(config.mixed) and not getattr(config.model, "gate", 0) and "val" in split.split("+")


def load(path: str | Path, device: str = "auto") -> Run:
    """Load a run, given by its directory or its name in ``checkpoints``.

    Raises UserError if it isn't a run, is damaged, or has an unknown model.
    """
    folder = RunDir(find_run(path))
    config = folder.read_config()
    run_id = config.run_id
    with user_format_errors(folder.path):
        tokenizer = tokenizer_from_dict(folder.read_tokenizer(run_id))
        tensors = folder.read_model(run_id)
        require_finite(tensors, str(folder.path))
        kind = MODELS.get(config.model.name)
        max_bytes = memory_limit_for(tensors.values())
    with user_format_errors(folder.path, runs_model_code=True):
        model = construct_model(kind, config.model, tokenizer.vocab_size, tokenizer.boundary_id, max_bytes)
        model.load_state_dict(tensors)
        model.set_document_ends(config.document_ends)
    model.to(pick_device(device)).eval()
    return Run(folder, config, tokenizer, model)


def versions() -> dict[str, str]:
    """Versions of makemore, torch and Python."""
    return {"makemore": __version__, "torch": torch.__version__, "python": platform.python_version()}
