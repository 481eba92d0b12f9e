"""Import a nanoGPT or makemore.py checkpoint as a run."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from makemore.corpus.datasets import resolve_input
from makemore.corpus.documents import SPLITS, make_documents
from makemore.corpus.splits import Corpus, make_corpus
from makemore.corpus.text import read_source
from makemore.errors import UserError
from makemore.evaluation.scoring import estimate_loss
from makemore.interop.checkpoint_file import read_checkpoint
from makemore.interop.pickled import (
    MAKEMORE_HEADS,
    from_makemore,
    from_nanogpt,
    is_makemore_transformer,
    is_nanogpt,
)
from makemore.models import MODELS
from makemore.models.base import LanguageModel
from makemore.runs.directory import RunDir
from makemore.runs.run import Run, load
from makemore.runs.training_lines import train_line_hashes
from makemore.runtime.files import user_format_errors
from makemore.runtime.memory import memory_limit_for
from makemore.settings import CorpusConfig, TrainConfig
from makemore.training.plan import make_plan, run_record
from makemore.training.planning import make_model
from makemore.training.pretrained import load_weights

MAX_CHECKED_TOKENS = 8192
"""Number of training tokens on which a checkpoint is compared with uniform guessing."""
MAX_EXCESS = 0.1
"""Maximum excess of the loss over ln V, the loss of uniform guessing, in nats per character. An untrained
model may exceed ln V slightly."""


def import_checkpoint(
    checkpoint: Path, text: str, out: Path | None = None, n_head: int | None = None, overwrite: bool = False
) -> Run:
    """Create a run from a checkpoint and the text it was trained on (a path or data set name).

    ``n_head`` applies to makemore.py transformers, whose files don't record it. Raises UserError if the
    checkpoint can't be read or has learned another text, ``n_head`` doesn't apply, or ``out`` exists already.
    """
    contents = read_checkpoint(checkpoint)
    if n_head is not None and not is_makemore_transformer(contents):
        raise UserError("--n-head applies only to makemore.py transformers; leave it out for this checkpoint")
    source = resolve_input((text,))
    folder = RunDir(out or Path("checkpoints") / f"{source.stem}-imported")
    if folder.is_occupied and not overwrite:
        raise UserError(f"{folder.path} already exists; add --overwrite or choose another --out")
    config = CorpusConfig(mode="text" if is_nanogpt(contents) else "lines")
    stored = read_source(source)
    pieces = make_documents(stored, config).pieces(SPLITS, line_end="")
    with user_format_errors(checkpoint):
        if is_nanogpt(contents):
            foreign = from_nanogpt(contents, pieces)
        else:
            foreign = from_makemore(contents, pieces, n_head or MAKEMORE_HEADS)
    corpus = make_corpus(stored, config, foreign.tokenizer)
    kind = MODELS.get(foreign.model)
    max_bytes = memory_limit_for(foreign.weights.values())
    model = make_model(kind, foreign.settings, foreign.tokenizer, 0, "anywhere", max_bytes)
    load_weights(model, foreign)
    _check_text(model, corpus)
    plan = make_plan(
        tokenizer_spec=foreign.tokenizer_spec,
        init_from=str(checkpoint),
        folder=folder,
        source=source,
        model=model,
        corpus=corpus,
        train=TrainConfig(),
        corpus_config=config,
        device=torch.device("cpu"),
    )
    with folder.locked():
        folder.clear()
        tokenizer, seen_U = foreign.tokenizer.to_dict(), train_line_hashes(corpus)
        run_id = folder.create(run_record(plan), tokenizer, seen_U=seen_U)
        folder.write_model(model.state_dict(), run_id)
        folder.write_result({"model": foreign.model, "parameters": model.n_parameters()})
    return load(folder.path, "cpu")


def _check_text(model: LanguageModel, corpus: Corpus) -> None:
    """Raise UserError if a model of characters predicts the text worse than uniform guessing.

    Checkpoints store only the number of characters. The characters of another text with as many get the
    wrong ids.
    """
    uniform = math.log(model.vocab_size)
    loss = estimate_loss(model, corpus.splits["train"], MAX_CHECKED_TOKENS)
    if corpus.tokenizer.name == "char" and loss > uniform + MAX_EXCESS:
        raise UserError(
            f"the checkpoint predicts this text worse than guessing ({loss:.2f} nats per character, guessing "
            f"{uniform:.2f}); pass the text it was trained on"
        )
