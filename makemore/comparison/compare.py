"""Rank models on one text, with confidence intervals and costs."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np

from makemore.comparison.cells import Cell, CellsRequest, make_cells, short_name
from makemore.comparison.differences import ABSENT, SEED, described_settings, differing_settings, setting_text
from makemore.comparison.grid import Failure, ObserverFactory, train_grid
from makemore.comparison.halving import train_halving
from makemore.comparison.result import Comparison, RankedModel, ScoredRun
from makemore.comparison.samples import Memorization, fixed_samples, sampling_speed
from makemore.comparison.scaling import fit_scaling, scaling_cells
from makemore.errors import UserError
from makemore.evaluation.baseline import uniform_nll
from makemore.evaluation.evaluate import adaptive_score, check_split, evaluate, get_split
from makemore.evaluation.profile import RunProfile, profile_run
from makemore.evaluation.ranking import PairedResult, compare_to_best
from makemore.runs.directory import CONFIG, RunDir, find_run
from makemore.runs.run import Run, load
from makemore.runs.schema import ResultRecord, RunRecord
from makemore.training.observers import Observer
from makemore.training.records import TrainingInterrupted
from makemore.types import Score


@dataclass(frozen=True, kw_only=True)
class CompareRequest(CellsRequest):
    """A comparison to run: models to train on one text, or existing runs, which are only scored."""

    inputs: tuple[str, ...]
    total_time: float | None = None
    """Training time of all runs in seconds, shared by successive halving."""
    split: str | None = None
    file: Path | None = None
    """Text to score all runs on instead of their own text."""
    scaling: bool = False
    """Train each model at several sizes and for several times, and fit a law to the losses."""
    adaptive: bool = False
    """Also score the runs while they learn from the text, and rank these scores on their own."""
    with_details: bool = False
    """Also compute the report's detailed metrics for the first run of each row."""


def null_observer(name: str) -> Observer:
    """Make an observer that shows nothing."""
    return Observer()


def compare(
    request: CompareRequest,
    observe: ObserverFactory = null_observer,
    stop: Callable[[], bool] = lambda: False,
) -> Comparison:
    """Train the models, or load existing runs, and rank them by their scores on one text.

    ``observe`` makes each run's observer in that run's process, and one observer named "" here. Raises
    UserError for unknown names or runs that can't be ranked, and TrainingInterrupted when stopped; repeating
    the request resumes the comparison.
    """
    if request.split is not None:
        check_split(request.split)
    note = observe("").note
    folders = [find_run(path) for path in request.inputs]
    trained_here = not all((folder / CONFIG).exists() for folder in folders)
    failures, stopped = list[Failure](), list[str]()
    if trained_here:
        cells = _cells(request)
        folders, failures, stopped = _train(cells, request, observe, stop)
        if not folders:
            raise UserError(f"{failures[0].name}: {failures[0].reason}")
    else:
        _require_only_scoring(request)
    groups = _groups(folders, _without_seed if trained_here else _described_without_seed)
    if request.file is None:
        _require_same_splits(groups)
    elif not request.file.is_file():
        raise UserError(f"--file {request.file}: no such file; give the path of a text")
    if trained_here:
        varied = list(dict.fromkeys(name for cell in cells for name in cell.settings))
        names = [_trained_name(group[0].config, groups, varied) for group in groups]
    else:
        varied = differing_settings([group[0].config for group in groups])
        if len(groups) < len(folders):  # a row may stand for several seeds
            varied = [name for name in varied if name != SEED]
        names = [_common_name([saved.folder.resolve().name for saved in group]) for group in groups]
    rows = _score_groups(groups, names, request, note, stop)
    laws, not_fitted = fit_scaling(rows) if request.scaling else ([], [])
    config = groups[0][0].config
    source = config.text.name if request.file is None else request.file.name
    return Comparison(
        source=source,
        split=rows[0].runs[0].score.split,
        mode=config.corpus.mode,
        rows=rows,
        failures=failures,
        stopped=stopped,
        not_fitted=not_fitted,
        laws=laws,
        differences=varied,
    )


def _require_only_scoring(request: CompareRequest) -> None:
    """Raise UserError for options that train runs, and for a run given twice."""
    options = {field.name: f"--{field.name.replace('_', '-')}" for field in fields(CellsRequest)}
    options |= {"total_time": "--budget-total", "scaling": "--scaling"}
    del options["device"]
    defaults = CompareRequest(inputs=())
    for name, option in options.items():
        if getattr(request, name) != getattr(defaults, name):
            raise UserError(f"{option} is for training; give a text, not run directories")
    twice = [path for path, n in Counter(map(find_run, request.inputs)).items() if n > 1]
    if twice:
        raise UserError(f"{twice[0]} is given twice; give each run once")


def _cells(request: CompareRequest) -> list[Cell]:
    """The runs to train. Raises UserError for a request that can't be fulfilled."""
    if len(request.inputs) > 1:
        other = next(path for path in request.inputs if not (find_run(path) / CONFIG).exists())
        raise UserError(f"{other} is not a run directory; give one text to train on, or only run directories")
    if request.file is not None:
        raise UserError("--file scores existing runs on another text; give run directories, not a text")
    if request.scaling and request.total_time is not None:
        raise UserError("--scaling trains every run to its end; leave out --budget-total")
    return (scaling_cells if request.scaling else make_cells)(request.inputs[0], request)


def _train(
    cells: list[Cell], request: CompareRequest, observe: ObserverFactory, stop: Callable[[], bool]
) -> tuple[list[Path], list[Failure], list[str]]:
    """Train all runs. Returns the existing runs' folders, the failures, and a line per run stopped early."""
    if request.total_time is None:
        return *train_grid([cell.request for cell in cells], observe, stop), []
    if request.steps is not None or request.max_time is not None:
        raise UserError("--budget-total sets the time of each run; leave out --max-time and --steps")
    return train_halving(cells, request.total_time, cells[0].folder.parent, observe, stop)


class _SavedRun(NamedTuple):
    """A run on disk."""

    folder: Path
    config: RunRecord


def _groups(folders: Iterable[Path], describe: Callable[[RunRecord], str]) -> list[list[_SavedRun]]:
    """Group runs with equal descriptions and different seeds."""
    groups: dict[tuple[str, int], list[_SavedRun]] = {}
    n_seen = Counter[tuple[str, int | None]]()
    for folder in folders:
        saved = _SavedRun(folder, RunDir(folder).read_config())
        identity = describe(saved.config)
        # Another run with the same seed goes into a group of its own.
        key = (identity, n_seen[identity, saved.config.seed])
        n_seen[identity, saved.config.seed] += 1
        groups.setdefault(key, []).append(saved)
    return list(groups.values())


def _described_without_seed(config: RunRecord) -> str:
    """Everything that a table of differences can show, so that a row hides no difference but the seed."""
    shown = [setting for setting in described_settings(config) if setting[0] != SEED]
    return _without_seed(config) + str(shown)


def _without_seed(config: RunRecord) -> str:
    """The settings and the text, without the seed and the device."""
    values = config.model_dump(
        include={"model": True, "tokenizer": True, "mixed": True, "train": True, "text": {"digests"}},
        exclude={"train": {"seed": True, "runtime": {"device"}}},
    )
    return json.dumps(values, sort_keys=True)


def _require_same_splits(groups: list[list[_SavedRun]]) -> None:
    first, *others = [saved for group in groups for saved in group]
    for saved in others:
        if saved.config.text.digests != first.config.text.digests:
            raise UserError(
                f"{saved.folder.name} and {first.folder.name} were trained on different splits; "
                "rank them on a common text with --file"
            )


def _score_groups(
    groups: list[list[_SavedRun]],
    names: list[str],
    request: CompareRequest,
    note: Callable[[str], None],
    stop: Callable[[], bool],
) -> list[RankedModel]:
    """Score every run; returns rows, best first."""
    memorization = Memorization()
    scored: list[list[ScoredRun]] = []
    samples: list[list[str]] = []
    profiles: list[RunProfile | None] = []
    for group in groups:
        scored.append([])
        for saved in group:
            if stop():
                raise TrainingInterrupted(saved.folder)
            run = load(saved.folder, request.device)
            result = run.folder.read_result()
            note(f"scoring {saved.folder.name}")
            scored[-1].append(_score_run(run, result, request))
            if saved is group[0]:
                samples.append(fixed_samples(run))
                memorization.add(run, samples[-1])
                split = get_split(run, request.file, request.split) if request.with_details else None
                profiles.append(None if split is None else profile_run(run, split))
    bytes_U = _common_units(scored)
    results = _rank([[run.score for run in runs] for runs in scored], bytes_U)
    adaptive = _rank([[run.adaptive for run in runs] for runs in scored], bytes_U)
    columns = zip(names, scored, results, adaptive, samples, memorization.shares(), profiles, strict=True)
    rows = [
        RankedModel(
            name=name,
            runs=tuple(runs),
            result=result,
            adaptive=adaptive_result,
            samples=texts,
            memorised=memorised,
            profile=profile,
        )
        for name, runs, result, adaptive_result, texts, memorised, profile in columns
        if result is not None
    ]
    return sorted(rows, key=lambda row: row.result.bits_per_byte)


def _rank(scores: list[list[Score | None]], bytes_U: np.ndarray) -> list[PairedResult | None]:
    """Compare models by the scores of their seeds; None where a score is missing."""
    nats = [[score.unit_nats_U for score in seeds if score is not None] for seeds in scores]
    complete = [i for i, seeds in enumerate(scores) if None not in seeds]
    results: list[PairedResult | None] = [None] * len(scores)
    if complete:
        ranked = compare_to_best([np.stack(nats[i]) for i in complete], bytes_U)
        for i, result in zip(complete, ranked, strict=True):
            results[i] = result
    return results


def _score_run(run: Run, result: ResultRecord | None, request: CompareRequest) -> ScoredRun:
    score = evaluate(run, request.file, request.split)
    adaptive, reason = None, ""
    if request.adaptive:
        try:
            adaptive = adaptive_score(run, request.file, request.split)
        except UserError as error:
            reason = str(error)
    records = run.folder.metrics.read()
    logged: dict[str, float] = records[-1] if records else {}
    return ScoredRun(
        folder=run.folder.path,
        config=run.config,
        parameters=run.model.n_parameters(),
        seconds=result.seconds if result else logged.get("elapsed", 0.0),
        steps=int(logged.get("step", 0)),
        tokens=result.tokens if result else int(logged.get("tokens", 0)),  # of a run that was stopped early
        peak_memory=result.peak_memory if result else None,
        sampling_speed=sampling_speed(run),
        score=score,
        adaptive=adaptive,
        not_adaptive=reason,
        uniform_nll=uniform_nll(score, run.model.vocab_size),
    )


def _common_units(scored: list[list[ScoredRun]]) -> np.ndarray:
    """Bytes of the scoring units (U,). Raises UserError if the runs have different units."""
    first = scored[0][0]
    for run in [run for runs in scored for run in runs]:
        if not np.array_equal(run.score.unit_bytes_U, first.score.unit_bytes_U):
            raise UserError(
                f"can't rank {run.folder.name} and {first.folder.name} together: "
                "one reads the text as lines, the other as one document; choose runs of one mode"
            )
    return first.score.unit_bytes_U


def _trained_name(config: RunRecord, groups: list[list[_SavedRun]], varied: list[str]) -> str:
    """The model, and what else differs between the rows: its tokenizer and its settings of the grid."""
    tokenizers = {group[0].config.tokenizer for group in groups}
    alike = [group[0].config for group in groups if group[0].config.model.name == config.model.name]
    values = {name: [setting_text(other, name) for other in (config, *alike)] for name in varied}
    settings = [
        f"{short_name(name)}={value}"
        for name, (value, *others) in values.items()
        if value != ABSENT and {*others} != {value}
    ]
    return " ".join([config.model.name, *([config.tokenizer] if len(tokenizers) > 1 else []), *settings])


def _common_name(names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    prefix = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in prefix).rstrip("-_. ") or names[0]
