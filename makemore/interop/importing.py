"""Import a nanoGPT or makemore.py checkpoint as a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from makemore.corpus.datasets import resolve_input
from makemore.corpus.documents import SPLITS, make_documents
from makemore.corpus.splits import make_corpus
from makemore.corpus.text import read_source
from makemore.errors import UserError
from makemore.interop.pickled import (
    MAKEMORE_HEADS,
    from_makemore,
    from_nanogpt,
    is_makemore_transformer,
    is_nanogpt,
    read_checkpoint,
)
from makemore.models import MODELS
from makemore.runs.directory import RunDir
from makemore.runs.run import Run, load
from makemore.runs.training_lines import train_line_hashes
from makemore.runtime.files import user_format_errors
from makemore.settings import CorpusConfig, TrainConfig, replace_settings
from makemore.training.plan import make_plan, run_config
from makemore.training.planning import make_model
from makemore.training.pretrained import load_weights
from makemore.training.request import TrainRequest


def import_checkpoint(
    checkpoint: Path, text: str, out: Path | None = None, n_head: int | None = None, overwrite: bool = False
) -> Run:
    """Create a run from a checkpoint and the text it was trained on (a path or data set name).

    ``n_head`` applies to makemore.py transformers, whose files don't record it. Raises UserError if the
    checkpoint can't be read or doesn't fit the text, ``n_head`` doesn't apply, or ``out`` already exists.
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
    model = make_model(kind, replace_settings(kind.Config(), foreign.settings, "model"), foreign.tokenizer, 0)
    load_weights(model, foreign)
    imported = dataclasses.replace(foreign, origin=str(checkpoint))
    plan = make_plan(
        request=TrainRequest(model=foreign.model, tokenizer=foreign.tokenizer_spec, pretrained=imported),
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
        run_id = folder.create(run_config(plan), tokenizer, seen_U=seen_U)
        folder.write_model(model.state_dict(), run_id)
        folder.write_result({"model": foreign.model, "parameters": model.n_parameters()})
    return load(folder.path, "cpu")
