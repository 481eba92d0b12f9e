"""Inspect a run: load its model and data, replay its first steps and draw its pictures."""

from __future__ import annotations

import copy
import dataclasses
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from makemore.corpus.decoding import normalize_newlines
from makemore.corpus.splits import Corpus
from makemore.errors import UserError
from makemore.inspection.figures import LEGEND
from makemore.inspection.pictures import PICTURES
from makemore.inspection.subject import Picture, Subject, Update
from makemore.models import MODELS
from makemore.models.base import CountModel
from makemore.runs.run import Run
from makemore.sampling.text import SampleRequest, stream_text
from makemore.training.assembly import make_loader, make_trainer
from makemore.training.plan import Plan, make_plan
from makemore.training.planning import make_model
from makemore.training.trainer import Trainer

REPLAYED_STEPS = 100
REPLAY_SECONDS = 20.0
MAX_TOKENS = 32
"""Maximum number of tokens in the per-token figures."""
DEFAULT_TOKENS = 20
"""Maximum without ``text``: short enough for four attention heads side by side."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """The pictures of a run, with facts about the run."""

    title: str
    facts: dict[str, str]
    pictures: list[Picture]
    left_out: str = ""
    """Why some pictures are missing; empty if none are."""


def draw_pictures(run: Run, text: str | None = None) -> Drawing:
    """Draw every picture that this model supports; attention and gates on ``text`` (default: a line of val).

    Raises UserError if the run can't encode the text.
    """
    text = None if text is None else normalize_newlines(text)
    subject, left_out = make_subject(run, text)
    n_shown = len(subject.tokens_T) - 1
    if text is not None and len(run.tokenizer.encode(text)) > n_shown:
        left_out = "; ".join([*filter(None, [left_out]), f"--text after its first {n_shown} tokens"])
    pictures = [picture for name in PICTURES if (picture := PICTURES.get(name)(subject)) is not None]
    return Drawing(
        title=f"{run.name}: {subject.model_name}",
        facts=_facts(run, subject, left_out),
        pictures=pictures,
        left_out=left_out,
    )


def make_subject(run: Run, text: str | None) -> tuple[Subject, str]:
    """Return the subject, and why some of its fields are missing (empty if none are)."""
    model = copy.deepcopy(run.model).cpu().eval()
    try:
        corpus, left_out = run.corpus(), ""
    except UserError as error:
        corpus, left_out = None, str(error)
    subject = Subject(
        model_name=run.config.model.name,
        model=model,
        tokenizer=run.tokenizer,
        tokens_T=_tokens(run, corpus, text),
        records=run.folder.metrics.read(),
    )
    if corpus is None:
        return subject, left_out
    plan = _plan(run, corpus)
    subject = dataclasses.replace(
        subject, train=corpus.splits["train"], val=corpus.splits["val"], batch=make_loader(plan).next()
    )
    if not model.is_trainable or isinstance(model, CountModel):
        return subject, ""
    if run.config.init_from:
        return subject, "replay of the first steps: training started from another model's weights"
    fresh = copy.deepcopy(plan.model).eval()
    steps = max((r["step"] for r in subject.records), default=0)
    updates = replay(make_trainer(plan, lambda: False), steps)
    return dataclasses.replace(subject, untrained=fresh, updates=updates), ""


def replay(trainer: Trainer, total: int) -> list[Update]:
    """Replay the first few training steps; returns relative updates. ``total``: steps of the original run."""
    matrices = {name: p for name, p in trainer.learner.model.named_parameters() if p.ndim > 1}
    ratios: dict[str, list[float]] = {name: [] for name in matrices}
    start = time.perf_counter()
    for step in range(min(REPLAYED_STEPS, total)):
        before = {name: p.detach().clone() for name, p in matrices.items()}
        if trainer.advance(step / total) is None:
            break
        for name, p in matrices.items():
            ratios[name].append(_update_ratio(p.detach() - before[name], before[name]))
        if time.perf_counter() - start > REPLAY_SECONDS:
            break
    return [Update(name, np.array(values)) for name, values in ratios.items()]


def _update_ratio(change: Tensor, values: Tensor) -> float:
    """Standard deviation of the change over standard deviation of the values; NaN if either is zero."""
    std = float(values.double().std(correction=0))
    change_std = float(change.double().std(correction=0))
    return change_std / std if std > 0 and change_std > 0 else float("nan")


def _plan(run: Run, corpus: Corpus) -> Plan:
    """Plan of the original training run, on the CPU in float32."""
    config = run.config
    train = config.train.replace(device="cpu", dtype="float32", compile="no", shard=False, ema=0.0)
    model = make_model(
        MODELS.get(config.model.name), config.model, run.tokenizer, train.seed, config.document_ends
    )
    return make_plan(
        folder=run.folder,
        source=run.source(),
        model=model,
        tokenizer_spec=config.tokenizer,
        corpus=corpus,
        train=train,
        corpus_config=config.corpus,
        device=torch.device("cpu"),
    )


def _tokens(run: Run, corpus: Corpus | None, text: str | None) -> Tensor:
    """Token ids (T,) to inspect: the boundary, then ``text`` or part of val."""
    limit = None if run.model.supports_streaming else run.model.max_len
    max_tokens = min(MAX_TOKENS, limit or MAX_TOKENS)
    if text is not None:
        ids = run.tokenizer.encode(text)
    elif corpus is not None:
        ids = _default_text(corpus)
    else:
        ids = run.tokenizer.encode(run.config.text.context or "".join(stream_text(run, SampleRequest(n=1))))
    ids = np.asarray(ids, np.int64)[: max_tokens - 1]
    return torch.from_numpy(np.concatenate([[run.tokenizer.boundary_id], ids]))


def _default_text(corpus: Corpus) -> np.ndarray:
    """Longest of the first 100 lines, or the start of running text; from val unless it is empty."""
    split = corpus.splits["val"] if len(corpus.splits["val"].tokens_N) else corpus.splits["train"]
    ends = split.ends_D[:100]
    starts = split.starts_D[: len(ends)]
    longest = int((ends - starts).argmax())
    n_boundary = 1 if corpus.mode == "lines" else 0
    return np.asarray(split.tokens_N[starts[longest] : ends[longest] - n_boundary][: DEFAULT_TOKENS - 1])


def _facts(run: Run, subject: Subject, left_out: str) -> dict[str, str]:
    facts = {
        "model": subject.model_name,
        "parameters": f"{run.model.n_parameters():,}",
        "trained on": f"{run.config.text.name} ({run.mode} mode)",
        "tokenizer": f"{run.config.tokenizer}, {run.tokenizer.vocab_size:,} tokens",
        "signs": LEGEND,
    }
    if left_out:
        facts["left out"] = left_out
    return facts
