"""A run in pictures and plain words."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from makemore.corpus.splits import Corpus
from makemore.errors import UserError
from makemore.inspection.figures import SIGNS, png
from makemore.inspection.pictures import (
    activations,
    attention,
    bigrams,
    embeddings,
    gates,
    losses,
    members,
    orders,
    parameters,
    reach,
    updates,
)
from makemore.inspection.subject import Picture, Subject, Update, Verdict
from makemore.models import MODELS
from makemore.models.base import CountModel
from makemore.report.inspection import inspection_page, pictures_on
from makemore.report.page import write_page
from makemore.runs.run import Run, corpus_config_of
from makemore.runtime.files import is_temporary, write_bytes
from makemore.settings import TrainConfig, override
from makemore.training.assembly import make_loader, make_trainer
from makemore.training.planning import Plan, TrainRequest, make_model, plan_run
from makemore.training.trainer import Trainer

DRAWERS: tuple[Callable[[Subject], Picture | None], ...] = (
    losses.draw,
    bigrams.draw,
    orders.draw,
    members.draw,
    embeddings.draw,
    activations.draw,
    parameters.draw,
    updates.draw,
    reach.draw,
    gates.draw,
    attention.draw,
)
REPLAYED_STEPS = 100
REPLAY_SECONDS = 20.0
LONGEST_TEXT = 32
"""Tokens that are looked at one by one."""
USUAL_TEXT = 20
"""Where no text was asked for: four heads stand side by side then."""


@dataclass(frozen=True)
class Inspection:
    """Where the pictures are, and what they say."""

    folder: Path
    files: list[Path]
    verdicts: list[Verdict]
    left_out: str = ""
    """Why some pictures are missing, where they are."""

    @property
    def page(self) -> Path:
        return self.folder / "index.html"

    def as_dict(self) -> dict[str, Any]:
        return {
            "page": str(self.page),
            "files": [str(path) for path in self.files],
            "verdicts": [dataclasses.asdict(verdict) for verdict in self.verdicts],
            "left_out": self.left_out,
        }


def inspect(run: Run, out: Path | None = None, text: str | None = None) -> Inspection:
    """Draw every picture that this rung has, and write them beside the run unless told where.

    ``text``: what attention and gates are shown on; a line of val unless given. Raises UserError for a
    text that the run can't spell, and for a folder with anything but an inspection in it.
    """
    folder = out or run.beside("-inspect")
    earlier = _earlier(folder)
    subject, left_out = subject_of(run, text)
    shown = len(subject.tokens_T) - 1
    if text is not None and len(run.tokenizer.encode(text)) > shown:
        left_out = "; ".join([*filter(None, [left_out]), f"all but the first {shown} tokens of --text"])
    pictures = [picture for picture in (draw(subject) for draw in DRAWERS) if picture is not None]
    images = {picture.name: png(picture.figure) for picture in pictures}
    html = inspection_page(f"{run.name}: {subject.rung}", _facts(run, subject, left_out), pictures, images)
    # The page first: by it the folder is known again, whatever comes between.
    write_page(folder / "index.html", html)
    for path in earlier:
        path.unlink(missing_ok=True)
    for name, image in images.items():
        write_bytes(folder / f"{name}.png", image)
    return Inspection(
        folder,
        [folder / "index.html", *(folder / f"{name}.png" for name in images)],
        [verdict for picture in pictures for verdict in picture.verdicts],
        left_out,
    )


def _earlier(folder: Path) -> list[Path]:
    """The pictures of an earlier inspection. Raises UserError for a place where something else is."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is in the way; name another --out")
    if not folder.exists() or all(map(is_temporary, folder.iterdir())):
        return []
    names = pictures_on(folder / "index.html")
    if names is None:
        raise UserError(f"{folder} holds something else than an inspection; name another --out")
    return [folder / f"{name}.png" for name in names]


def subject_of(run: Run, text: str | None) -> tuple[Subject, str]:
    """All that there is to look at, and why some of it is missing, where it is."""
    result = run.folder.read_result() or {}
    model = copy.deepcopy(run.model).cpu().eval()
    try:
        corpus, left_out = run.corpus(), ""
    except UserError as error:
        corpus, left_out = None, str(error)
    subject = Subject(
        run.name,
        run.config["model"]["name"],
        model,
        run.tokenizer,
        _tokens(run, corpus, text),
        run.folder.read_metrics(),
        bool(result.get("stopped_early")),
    )
    if corpus is None:
        return subject, left_out
    plan = _plan(run, corpus)
    subject = dataclasses.replace(
        subject,
        train=corpus.splits["train"],
        val=corpus.splits["val"],
        batch=make_loader(plan).next(),
    )
    if not model.standalone or isinstance(model, CountModel):
        return subject, ""
    if run.config.get("init_from"):
        return subject, "its first steps are not taken again, for it began with another model's weights"
    fresh = copy.deepcopy(plan.model).eval()
    steps = max((r["step"] for r in subject.records if isinstance(r.get("step"), int)), default=0)
    return dataclasses.replace(subject, fresh=fresh, updates=replay(make_trainer(plan, _never), steps)), ""


def replay(trainer: Trainer, total: int) -> list[Update]:
    """The first steps of a training run of ``total``, taken again; of each matrix, how far each moved it."""
    matrices = {name: p for name, p in trainer.learner.model.named_parameters() if p.ndim > 1}
    ratios: dict[str, list[float]] = {name: [] for name in matrices}
    begun = time.perf_counter()
    for step in range(min(REPLAYED_STEPS, total)):
        before = {name: p.detach().clone() for name, p in matrices.items()}
        if trainer.advance(step / total) is None:
            break
        for name, p in matrices.items():
            ratios[name].append(_ratio(p.detach() - before[name], before[name]))
        if time.perf_counter() - begun > REPLAY_SECONDS:
            break
    return [Update(name, np.array(found)) for name, found in ratios.items()]


def _ratio(change: Tensor, values: Tensor) -> float:
    """NaN where the values are all alike, as zeros are."""
    spread = float(values.double().std(correction=0))
    moved = float(change.double().std(correction=0))
    return moved / spread if spread > 0 and moved > 0 else float("nan")


def _never() -> bool:
    return False


def _plan(run: Run, corpus: Corpus) -> Plan:
    """The training run as it began, on the CPU, in small batches for what is only looked at."""
    config = run.config
    saved = config.get("train") or {}
    train = override(TrainConfig(), {**saved, "device": "cpu", "dtype": "float32", "compile": "no"}, "train")
    train = dataclasses.replace(train, shard=False, ema=0.0)
    kind = MODELS.get(config["model"]["name"])
    settings = override(kind.Config(), config["model"]["settings"], "model")
    model = make_model(kind, settings, run.tokenizer, train.seed)
    request = TrainRequest(None, config["model"]["name"], config["tokenizer"], run.folder.path)
    return plan_run(request, run.folder, run.source(), model, corpus, train, corpus_config_of(config))


def _tokens(run: Run, corpus: Corpus | None, text: str | None) -> Tensor:
    """(T,): the boundary, then the text to look at: what was asked for, or some of val."""
    room = min(
        LONGEST_TEXT, run.model.max_len if not run.model.streams and run.model.max_len else LONGEST_TEXT
    )
    if text is not None:
        ids = run.tokenizer.encode(text)
    elif corpus is not None:
        ids = _some_text(corpus)
    else:
        ids = run.tokenizer.encode(run.config["corpus"]["context"] or "".join(run.generate(seed=0)))
    ids = np.asarray(ids, np.int64)[: room - 1]
    return torch.from_numpy(np.concatenate([[run.tokenizer.boundary_id], ids]))


def _some_text(corpus: Corpus) -> np.ndarray:
    """In lines, the longest of the first hundred; the beginning of a running text. Of val if there is one."""
    split = corpus.splits["val"] if len(corpus.splits["val"].tokens_N) else corpus.splits["train"]
    ends = split.ends_D[:100]
    starts = split.starts_D[: len(ends)]
    at = int((ends - starts).argmax())
    last = 1 if corpus.mode == "lines" else 0
    return np.asarray(split.tokens_N[starts[at] : ends[at] - last][: USUAL_TEXT - 1])


def _facts(run: Run, subject: Subject, left_out: str) -> dict[str, str]:
    """What stands above the pictures."""
    facts = {
        "rung": subject.rung,
        "parameters": f"{run.model.n_parameters():,}",
        "trained on": f"{run.config['corpus']['name']} ({run.mode} mode)",
        "tokenizer": f"{run.config['tokenizer']}, {run.tokenizer.vocab_size:,} tokens",
        "signs": SIGNS,
    }
    if left_out:
        facts["left out"] = left_out
    return facts
