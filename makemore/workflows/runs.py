"""A trained run in memory: its model, its tokenizer, what it was trained on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from makemore.allowance import construct, for_weights
from makemore.checkpoint import RunDir
from makemore.config import CorpusConfig, override
from makemore.corpus.documents import Documents, Mode, make_documents
from makemore.corpus.source import read_text
from makemore.corpus.splits import Corpus, make_corpus
from makemore.device import pick_device
from makemore.errors import UserError
from makemore.files import well_formed
from makemore.models import MODELS
from makemore.models.base import LanguageModel
from makemore.sampling import SampleParams
from makemore.tokenizers import Tokenizer, tokenizer_from_dict
from makemore.workflows.generation import SampleRequest, context, random_seed, stream_text


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

    @property
    def mode(self) -> Mode:
        return self.config["corpus"]["mode"]

    def documents(self, path: Path | None = None) -> Documents:
        """The text it was trained on (or another), split as it was then.

        Raises UserError where the text is gone or has changed since.
        """
        corpus = self.config["corpus"]
        config = CorpusConfig(self.mode, ",".join(map(str, corpus["shares"])), corpus["encoding"])
        source = path or Path(corpus["path"])
        if path is None and not os.path.isfile(source):  # no error for a name that none can have
            raise UserError(f"{source}, which {self.name} was trained on, is gone; name the file")
        documents = make_documents(read_text(source, config.encoding), config)
        if path is None and any(documents.digest(s) != d for s, d in corpus["digests"].items()):
            raise UserError(f"{source} has changed since {self.name} was trained; name the file to score")
        return documents

    def corpus(self, path: Path | None = None) -> Corpus:
        """As ``documents``, in this run's tokens."""
        return make_corpus(self.documents(path), self.tokenizer)

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
