"""Inspect a run: figures and findings on one HTML page."""

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
from makemore.inspection.figures import LEGEND, png
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
from makemore.report.inspection import inspection_page, picture_names
from makemore.report.page import write_page
from makemore.runs.run import Run, corpus_config_of
from makemore.runtime.files import is_temporary, write_bytes
from makemore.settings import TrainConfig, replace_settings
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
MAX_TOKENS = 32
"""Maximum number of tokens in the per-token figures."""
DEFAULT_TOKENS = 20
"""Maximum without ``text``: short enough for four attention heads side by side."""


@dataclass(frozen=True)
class Inspection:
    """Result of an inspection: the files written and the verdicts."""

    folder: Path
    files: list[Path]
    verdicts: list[Verdict]
    left_out: str = ""
    """Why some figures are missing; empty if none are."""

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
    """Draw every figure this model supports, by default into a folder next to the run.

    Attention and gates are shown on ``text`` (default: a line of val). Raises UserError if the run can't
    encode the text, or if the folder holds anything other than an inspection.
    """
    folder = out or run.sibling("-inspect")
    old_images = _old_images(folder)
    subject, left_out = make_subject(run, text)
    n_shown = len(subject.tokens_T) - 1
    if text is not None and len(run.tokenizer.encode(text)) > n_shown:
        left_out = "; ".join([*filter(None, [left_out]), f"--text after its first {n_shown} tokens"])
    pictures = [picture for picture in (drawer(subject) for drawer in DRAWERS) if picture is not None]
    images = {picture.name: png(picture.figure) for picture in pictures}
    html = inspection_page(
        f"{run.name}: {subject.model_name}", _facts(run, subject, left_out), pictures, images
    )
    # Write the page first: it marks the folder as an inspection even if interrupted here.
    write_page(folder / "index.html", html)
    for path in old_images:
        path.unlink(missing_ok=True)
    for name, image in images.items():
        write_bytes(folder / f"{name}.png", image)
    return Inspection(
        folder,
        [folder / "index.html", *(folder / f"{name}.png" for name in images)],
        [verdict for picture in pictures for verdict in picture.verdicts],
        left_out,
    )


def _old_images(folder: Path) -> list[Path]:
    """Figures of an earlier inspection. Raises UserError if ``folder`` holds anything else."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a directory; choose another --out")
    if not folder.exists() or all(map(is_temporary, folder.iterdir())):
        return []
    names = picture_names(folder / "index.html")
    if names is None:
        raise UserError(f"{folder} is not an inspection; choose another --out")
    return [folder / f"{name}.png" for name in names]


def make_subject(run: Run, text: str | None) -> tuple[Subject, str]:
    """Everything to inspect, and why some of it is missing (empty if nothing is)."""
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
    if not model.is_trainable or isinstance(model, CountModel):
        return subject, ""
    if run.config.get("init_from"):
        return subject, "replay of the first steps: training started from another model's weights"
    fresh = copy.deepcopy(plan.model).eval()
    steps = max((r["step"] for r in subject.records if isinstance(r.get("step"), int)), default=0)
    return dataclasses.replace(
        subject, untrained=fresh, updates=replay(make_trainer(plan, _never), steps)
    ), ""


def replay(trainer: Trainer, total: int) -> list[Update]:
    """Replay the first of ``total`` training steps; returns each matrix's relative update per step."""
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
    """Standard deviation of the change relative to the values'; NaN if either is zero."""
    std = float(values.double().std(correction=0))
    change_std = float(change.double().std(correction=0))
    return change_std / std if std > 0 and change_std > 0 else float("nan")


def _never() -> bool:
    return False


def _plan(run: Run, corpus: Corpus) -> Plan:
    """Plan of the original training run, on the CPU in float32."""
    config = run.config
    saved = config.get("train") or {}
    train = replace_settings(
        TrainConfig(), {**saved, "device": "cpu", "dtype": "float32", "compile": "no"}, "train"
    )
    train = dataclasses.replace(train, shard=False, ema=0.0)
    kind = MODELS.get(config["model"]["name"])
    settings = replace_settings(kind.Config(), config["model"]["settings"], "model")
    model = make_model(kind, settings, run.tokenizer, train.seed)
    request = TrainRequest(None, config["model"]["name"], config["tokenizer"], run.folder.path)
    return plan_run(request, run.folder, run.source(), model, corpus, train, corpus_config_of(config))


def _tokens(run: Run, corpus: Corpus | None, text: str | None) -> Tensor:
    """Token ids (T,) to inspect: the boundary, then ``text`` or some of val."""
    max_tokens = min(
        MAX_TOKENS,
        run.model.max_len if not run.model.supports_streaming and run.model.max_len else MAX_TOKENS,
    )
    if text is not None:
        ids = run.tokenizer.encode(text)
    elif corpus is not None:
        ids = _default_text(corpus)
    else:
        ids = run.tokenizer.encode(run.config["corpus"]["context"] or "".join(run.generate(seed=0)))
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
        "rung": subject.model_name,
        "parameters": f"{run.model.n_parameters():,}",
        "trained on": f"{run.config['corpus']['name']} ({run.mode} mode)",
        "tokenizer": f"{run.config['tokenizer']}, {run.tokenizer.vocab_size:,} tokens",
        "signs": LEGEND,
    }
    if left_out:
        facts["left out"] = left_out
    return facts
