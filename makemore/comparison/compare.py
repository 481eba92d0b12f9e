"""Which kind of model is really better on a text, by how much, at what cost."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from makemore.comparison.grid import Failure, Grid, Observe, train_grid
from makemore.comparison.result import Comparison, Row, ScoredRun, seed_of
from makemore.comparison.samples import ByHeart, sampling_speed, specimens
from makemore.corpus.datasets import find_input
from makemore.errors import UserError
from makemore.evaluation.evaluate import check_split, evaluate, split_of
from makemore.evaluation.intervals import judge
from makemore.evaluation.profile import Portrait, portrait
from makemore.models import MODELS
from makemore.runs.directory import CONFIG, RESULT, RunDir
from makemore.runs.run import Run, load
from makemore.runtime.device import pick_device
from makemore.runtime.files import well_formed
from makemore.tokenizers import TOKENIZERS
from makemore.training.observers import Silent
from makemore.training.train import Interrupted

DEFAULT_SECONDS = 90.0
"""Training time of each run where neither steps nor time are given: the ladder takes some 17 minutes."""


@dataclass(frozen=True)
class CompareRequest:
    """What to compare: one text, on which every rung is trained, or existing runs."""

    inputs: tuple[str, ...]
    models: str = "all"
    tokenizers: str = "char"
    seeds: int = 1
    """Runs of each rung, with seeds from 0 on."""
    steps: int | None = None
    max_time: float | None = None
    split: str | None = None
    file: Path | None = None
    """A text to score all runs on, in place of their own."""
    out: Path | None = None
    device: str = "auto"
    overwrite: bool = False
    portraits: bool = False
    """Look closer at the first run of each row, as a report needs it."""


def watch_nothing(name: str) -> Silent:
    """Nobody watches."""
    return Silent()


def compare(
    request: CompareRequest, observe: Observe = watch_nothing, stop: Callable[[], bool] = lambda: False
) -> Comparison:
    """Train what has to be trained, and score all on one text.

    ``observe`` makes an observer for each run trained, in that run's process, and one here, of no name.
    Raises UserError for unknown names, or runs that can't be ranked, and Interrupted when stopped: the
    same request then goes on.
    """
    if request.split is not None:
        check_split(request.split)
    note = observe("").note
    trained_here = not all((Path(path) / CONFIG).exists() for path in request.inputs)
    failures: list[Failure] = []
    if not trained_here:
        folders = [Path(path) for path in request.inputs]
    elif len(request.inputs) > 1:
        raise UserError("give one text to train on, or run directories only")
    else:
        folders, failures = train_grid(_grid(request), observe, stop)
        if not folders:
            raise UserError(f"{failures[0].name}: {failures[0].reason}")
    groups = _groups(folders)
    if request.file is None:
        _refuse_other_splits(groups)
    elif not request.file.is_file():
        raise UserError(f"no such file: {request.file}")
    rows = _measure(groups, _names(groups, trained_here), request, note, stop)
    corpus = groups[0][0].config["corpus"]
    source = corpus["name"] if request.file is None else request.file.name
    return Comparison(source, rows[0].runs[0].score.split, corpus["mode"], rows, failures)


def _grid(request: CompareRequest) -> Grid:
    if request.file is not None:
        raise UserError("--file is a text to score existing runs on; give run directories")
    if request.models == "all":
        models = [name for name in MODELS if MODELS.get(name).standalone]
    else:
        models = [name.strip() for name in request.models.split(",")]
    for name in models:
        if not MODELS.get(name).standalone:
            raise UserError(f"a {name} is made of trained runs; name them, or another rung")
    tokenizers = [spec.strip() for spec in request.tokenizers.split(",")]
    for spec in tokenizers:
        TOKENIZERS.path(spec.partition(":")[0])
    pick_device(request.device)
    path = find_input(request.inputs[0])
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    no_budget = request.steps is None and request.max_time is None
    return Grid(
        path,
        tuple(dict.fromkeys(models)),
        tuple(dict.fromkeys(tokenizers)),
        request.seeds,
        request.out or Path("checkpoints") / f"{path.stem}-compare",
        request.steps,
        DEFAULT_SECONDS if no_budget else request.max_time,
        request.device,
        request.overwrite,
    )


class _Found(NamedTuple):
    """A run on disk."""

    folder: Path
    config: dict[str, Any]

    @property
    def seed(self) -> int | None:
        return seed_of(self.config)


def _groups(folders: Iterable[Path]) -> list[list[_Found]]:
    """Runs, those together that differ in their seed alone."""
    groups: dict[tuple[str, int], list[_Found]] = {}
    seen = Counter[tuple[str, int | None]]()
    for folder in folders:
        found = _Found(folder, RunDir(folder).read_config())
        alike = _all_but_seed(found.config)
        # A second run of one seed stands for itself.
        key = (alike, seen[alike, found.seed])
        seen[alike, found.seed] += 1
        groups.setdefault(key, []).append(found)
    return list(groups.values())


def _all_but_seed(config: dict[str, Any]) -> str:
    train = {k: v for k, v in config.get("train", {}).items() if k not in ("seed", "device")}
    kept = {k: config.get(k) for k in ("model", "tokenizer", "mixed")}
    return json.dumps({**kept, "train": train, "text": config["corpus"]["digests"]}, sort_keys=True)


def _refuse_other_splits(groups: list[list[_Found]]) -> None:
    first, *others = [found for group in groups for found in group]
    for found in others:
        if found.config["corpus"]["digests"] != first.config["corpus"]["digests"]:
            raise UserError(
                f"{found.folder.name} and {first.folder.name} were trained on different splits; "
                "they can be ranked on a common text alone: --file"
            )


def _measure(
    groups: list[list[_Found]],
    names: list[str],
    request: CompareRequest,
    note: Callable[[str], None],
    stop: Callable[[], bool],
) -> list[Row]:
    """Rows, best first."""
    by_heart = ByHeart()
    measured: list[list[ScoredRun]] = []
    samples: list[list[str]] = []
    portraits: list[Portrait | None] = []
    for group in groups:
        measured.append([])
        for found in group:
            if stop():
                raise Interrupted(found.folder)
            run = load(found.folder, request.device)
            result = run.folder.read_result() or {}
            note(f"scoring {found.folder.name}")
            measured[-1].append(_scored(run, result, request))
            if found is group[0]:
                samples.append(specimens(run))
                by_heart.add(run, samples[-1])
                portraits.append(_portrait(run, request) if request.portraits else None)
    bytes_U = _common_units(measured)
    judgements = judge([np.stack([run.score.unit_nats_U for run in runs]) for runs in measured], bytes_U)
    columns = zip(judgements, samples, by_heart.shares(), portraits, strict=True)
    rows = [
        Row(name, tuple(runs), *figures) for name, runs, figures in zip(names, measured, columns, strict=True)
    ]
    return sorted(rows, key=lambda row: row.judgement.bits_per_byte)


def _portrait(run: Run, request: CompareRequest) -> Portrait:
    return portrait(run, split_of(run, request.file, request.split))


def _scored(run: Run, result: dict[str, Any], request: CompareRequest) -> ScoredRun:
    with well_formed(run.folder.path / RESULT):
        seconds, tokens = float(result.get("seconds", 0.0)), int(result.get("tokens", 0))
        memory = result.get("peak_memory")
        memory = memory if memory is None else int(memory)
    return ScoredRun(
        run.folder.path,
        run.config,
        run.model.n_parameters(),
        seconds,
        tokens,
        memory,
        sampling_speed(run),
        evaluate(run, request.file, request.split),
    )


def _common_units(measured: list[list[ScoredRun]]) -> np.ndarray:
    """(U,) bytes of the units that all scores are sums over."""
    first = measured[0][0]
    for run in [run for runs in measured for run in runs]:
        if not np.array_equal(run.score.unit_bytes_U, first.score.unit_bytes_U):
            raise UserError(
                f"{run.folder.name} and {first.folder.name} read the text differently, "
                "as lines and as one text; can't rank them"
            )
    return first.score.unit_bytes_U


def _names(groups: list[list[_Found]], trained_here: bool) -> list[str]:
    """Models, where they were trained here; else folders, or what folders of one group have in common."""
    if trained_here:
        tokenizers = {group[0].config["tokenizer"] for group in groups}
        configs = [group[0].config for group in groups]
        return [c["model"]["name"] + (f" {c['tokenizer']}" if len(tokenizers) > 1 else "") for c in configs]
    return [_common_name([found.folder.resolve().name for found in group]) for group in groups]


def _common_name(names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in same).rstrip("-_. ") or names[0]
