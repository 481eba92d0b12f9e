"""A trained run in memory: its model, its tokenizer, what it was trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from makemore.corpus.documents import Documents, Mode, make_documents
from makemore.corpus.source import Source, find_source, recorded_source
from makemore.corpus.splits import Corpus, make_corpus
from makemore.corpus.text import Text, store_text
from makemore.errors import UserError
from makemore.evaluation.surprisal import Surprisal, surprisal
from makemore.models import MODELS
from makemore.models.base import LanguageModel
from makemore.runs.directory import RunDir
from makemore.runtime.device import pick_device
from makemore.runtime.files import well_formed
from makemore.runtime.memory import construct, for_weights
from makemore.sampling import SampleParams
from makemore.sampling.text import SampleRequest, context, random_seed, stream_text
from makemore.settings import CorpusConfig, override
from makemore.tokenizers import Tokenizer, tokenizer_from_dict


def corpus_config_of(config: dict[str, Any]) -> CorpusConfig:
    """How a run's text was split, from its settings."""
    corpus = config["corpus"]
    names = [field.name for field in dataclasses.fields(CorpusConfig)]
    return override(CorpusConfig(), {name: corpus[name] for name in names}, "corpus")


def saved_paths(config: dict[str, Any]) -> list[str]:
    """Where a run's text came from."""
    return list(config["corpus"]["paths"])


@dataclass(frozen=True)
class Run:
    """A run directory, loaded."""

    folder: RunDir
    config: dict[str, Any]
    tokenizer: Tokenizer
    model: LanguageModel

    @property
    def name(self) -> str:
        return self.folder.path.name

    def beside(self, suffix: str) -> Path:
        """A place next to the run, called after it."""
        return self.folder.path.with_name(self.name + suffix)

    @property
    def mode(self) -> Mode:
        return self.config["corpus"]["mode"]

    def text(self, path: Path | None = None) -> Text:
        """The text it was trained on, or another. Raises UserError where it is gone or unreadable."""
        source = self.source() if path is None else find_source(str(path))
        return store_text(source, self.config["corpus"]["encoding"])

    def source(self) -> Source:
        """Where its training text is. Raises UserError for anything but existing local files."""
        return recorded_source(saved_paths(self.config))

    def documents(self, path: Path | None = None) -> Documents:
        """The text it was trained on (or another), split as it was then.

        Raises UserError where the text is gone or has changed since.
        """
        documents = make_documents(self.text(path), corpus_config_of(self.config))
        if path is None:
            self._check({name: documents.digest(name) for name in documents.spans})
        return documents

    def corpus(self, path: Path | None = None) -> Corpus:
        """As ``documents``, in this run's tokens."""
        corpus = make_corpus(self.text(path), corpus_config_of(self.config), self.tokenizer)
        if path is None:
            self._check(corpus.digests)
        return corpus

    def _check(self, digests: dict[str, str]) -> None:
        if digests != self.config["corpus"]["digests"]:
            source = saved_paths(self.config)[0]
            raise UserError(f"{source} has changed since {self.name} was trained; name the file to score")

    def generate(
        self,
        prompt: str = "",
        max_new_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        greedy: bool = False,
        stop: str | None = None,
        seed: int | None = None,
    ) -> Iterator[str]:
        """What follows a prompt, piece by piece as it is made; the same for a seed.

        Raises UserError for values without meaning, or a prompt that the tokenizer can't spell.
        """
        params = SampleParams(temperature, top_k, top_p, min_p, greedy)
        seed = random_seed() if seed is None else seed
        request = SampleRequest(1, prompt, max_new_tokens, params, stop, seed)
        context(self, request)  # refuses a prompt now rather than at the first piece
        return stream_text(self, request)

    def score(self, text: str | Path) -> Surprisal:
        """What each piece of a text (a string, or the file at a path) cost, and the totals.

        Raises UserError for a file that can't be read, or a text that has nothing in it.
        """
        return surprisal(self, text)


def load(path: str | Path, device: str = "auto") -> Run:
    """Load a run directory. Raises UserError where it is none, damaged, or of an unknown rung."""
    folder = RunDir(Path(path))
    config = folder.read_config()
    run_id = config["run_id"]
    with well_formed(folder.path):
        tokenizer = tokenizer_from_dict(folder.read_tokenizer(run_id))
        tensors = folder.read_model(run_id)
        kind = MODELS.get(config["model"]["name"])
        settings = override(kind.Config(), config["model"]["settings"], "model")
        most = for_weights(tensors.values())
        model = construct(kind, settings, tokenizer.vocab_size, tokenizer.boundary_id, most)
        model.load_state_dict(tensors)
    model.to(pick_device(device)).eval()
    return Run(folder, config, tokenizer, model)


def versions() -> dict[str, str]:
    """What a run was made with."""
    import platform

    from makemore import __version__

    return {"makemore": __version__, "torch": torch.__version__, "python": platform.python_version()}
