"""``auto``: train a counting and a neural model within one budget, and mix them by a gate."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch

from makemore.corpus.source import Source
from makemore.corpus.splits import Corpus
from makemore.errors import UserError
from makemore.evaluation.baseline import remark, uniform_nll
from makemore.evaluation.evaluate import score_own
from makemore.models.context_mixing.native import LIBRARY
from makemore.models.mixture import Auto
from makemore.runs.directory import RunDir
from makemore.runs.run import Run
from makemore.runtime import distributed
from makemore.runtime.device import peak_memory, pick_device
from makemore.settings import TrainConfig
from makemore.settings.base import merge
from makemore.training.fitting import final_samples, fitted, scored_part, scoring_progress, trained_run
from makemore.training.mixing.beside import train_beside
from makemore.training.mixing.mix import (
    FittedMixture,
    equal_mixture,
    gated_mixture,
    rule_out_ends,
    save_mixture,
)
from makemore.training.observers import Observer
from makemore.training.planning import DEFAULT_SECONDS, check_run_dir, has_budget, prepare
from makemore.training.records import MemberResult, TrainingInterrupted, TrainResult
from makemore.training.request import TrainRequest, open_source, run_folder
from makemore.training.trainer import Trainer

COUNTING, NEURAL = ("context-mixing", "count"), "transformer"
"""The counting member, and the one used without a C compiler or if that is too slow; the neural
member."""
MAX_COUNTED_VOCABULARY = 1024
"""Largest vocabulary for context mixing, whose whole distribution takes a decision for each token of it."""
COUNTING_SHARE = 0.85
"""Part of the budget that counting may take, if the text is long."""
GATE_SHARE, MAX_GATE_SECONDS = 0.08, 8.0
"""Part of the budget that is kept for fitting the gate."""
MIN_NEURAL_SECONDS = 4.0
"""Time below which a neural network isn't worth starting."""


class _Trained:
    """A trained member, and the totals of its training."""

    def __init__(self, run: Run, corpus: Corpus, trainer: Trainer) -> None:
        self.run, self.corpus = run, corpus
        self.seconds, self.steps, self.tokens = trainer.elapsed, trainer.step, trainer.tokens


def train_auto(request: TrainRequest, observer: Observer, stop: Callable[[], bool]) -> TrainResult:
    """Train the members in ``members`` of the run directory, fit a gate on val, and save all as one run.

    Raises:
        UserError: the request is invalid.
        TrainingInterrupted: ``stop`` returned True; the members trained so far are kept for ``resume``.
    """
    source = open_source(request)
    folder = RunDir(run_folder(request, source))
    _check(request, folder)
    if request.resume:
        request = _completed(request, folder, source)
    counting = _counting_member(request, folder)
    with folder.locked():
        if not request.resume:
            folder.clear()
            folder.write_requested(_requested_settings(request))
        try:
            members, seconds = _train_members(request, folder, counting, observer, stop)
            return _combine(request, folder, members, seconds, observer, stop)
        except TrainingInterrupted:
            raise TrainingInterrupted(folder.path) from None


def _check(request: TrainRequest, folder: RunDir) -> None:
    """Raise UserError for a request that ``auto`` can't fulfil."""
    if distributed.dist_info_from_env().world_size > 1:
        raise UserError("auto trains in one process; name a --model to train with torchrun")
    if request.pretrained:
        raise UserError("auto can't start from trained weights; leave out --model or --init-from")
    if not request.resume:
        check_run_dir(folder, request)
    elif folder.exists and (name := folder.read_config().model.name) != "auto":
        raise UserError(f"the run's model is {name}, not auto; resume it with --model {name}")
    elif not any(folder.member(name).exists for name in COUNTING):
        raise UserError(f"no run at {folder.path} to resume; leave out --resume")


def _requested_settings(request: TrainRequest) -> dict[str, Any]:
    return request.requested.model_dump(mode="json", exclude_unset=True, exclude={"model"})


def _completed(request: TrainRequest, folder: RunDir, source: Source) -> TrainRequest:
    """A request to resume, with the text and those settings of the interrupted one that it doesn't change."""
    settings = merge(folder.read_requested(), _requested_settings(request))
    return dataclasses.replace(
        request,
        input=source.names,
        tokenizer=settings.get("tokenizer"),
        train=settings.get("train", {}),
        corpus=settings.get("corpus", {}),
        settings=(),
        config=None,
    )


def _counting_member(request: TrainRequest, folder: RunDir) -> str:
    """The counting model that suits the text, or that the resumed run has.

    Raises UserError, before anything is written, for an invalid request.
    """
    if request.resume:
        return next(name for name in COUNTING if folder.member(name).exists)
    # Also measures the neural member's training speed, which another member beside it would falsify.
    neural = _member_request(request, folder, NEURAL, _training_time(request.requested.train))
    corpus = prepare(neural, Observer()).corpus
    is_small = corpus.tokenizer.vocab_size <= MAX_COUNTED_VOCABULARY
    return COUNTING[0 if is_small and LIBRARY.load() is not None else 1]


def _train_members(
    request: TrainRequest, folder: RunDir, counting: str, observer: Observer, stop: Callable[[], bool]
) -> tuple[list[_Trained], float]:
    """Train the counting model and a transformer, and return the seconds of both.

    At the same time, if only time limits them and there are several threads; else one after another, so
    that a given number of steps gives the same results again.
    """
    train = request.requested.train
    time = _training_time(train)

    def member(name: str, limit: float | None) -> Callable[[Observer, Callable[[], bool]], _Trained]:
        return lambda observer, stop: _train_member(request, folder, name, limit, observer, stop)

    if time is not None and time >= MIN_NEURAL_SECONDS and _can_overlap(counting, train):
        members = train_beside(member(counting, time), member(NEURAL, time), observer, stop)
        return list(members), max(trained.seconds for trained in members)
    counted = member(counting, None if time is None else COUNTING_SHARE * time)(observer, stop)
    left = None if time is None else round(time - counted.seconds, 1)
    if left is not None and left < MIN_NEURAL_SECONDS:
        observer.note(f"too little time is left to train a {NEURAL}; raise --max-time")
        return [counted], counted.seconds
    neural = member(NEURAL, left)(observer, stop)
    return [counted, neural], counted.seconds + neural.seconds


def _budget(train: TrainConfig) -> float | None:
    """Seconds, or None if the steps of the transformer are the only limit."""
    return train.max_time if has_budget(train) else DEFAULT_SECONDS


def _training_time(train: TrainConfig) -> float | None:
    """Seconds for training both members, or None without a limit."""
    budget = _budget(train)
    return None if budget is None else round(budget - min(GATE_SHARE * budget, MAX_GATE_SECONDS), 1)


def _can_overlap(counting: str, train: TrainConfig) -> bool:
    return counting == COUNTING[0] and not train.steps and torch.get_num_threads() > 1


def _train_member(
    request: TrainRequest,
    folder: RunDir,
    name: str,
    limit: float | None,
    observer: Observer,
    stop: Callable[[], bool],
) -> _Trained:
    """Train or resume a member, for at most ``limit`` seconds in all (None: limited by steps)."""
    member = folder.member(name)
    with fitted(_member_request(request, folder, name, limit), observer, stop) as (plan, trainer):
        member.write_result({"seconds": trainer.elapsed, "tokens": trainer.tokens})
        return _Trained(trained_run(plan), plan.corpus, trainer)


def _member_request(request: TrainRequest, folder: RunDir, name: str, limit: float | None) -> TrainRequest:
    requested, member = request.requested, folder.member(name)
    settings = requested.train.model_dump(exclude_unset=True)
    if name != NEURAL:  # one pass over the text
        settings.pop("steps", None)
    return TrainRequest(
        input=request.input,
        model=name,
        tokenizer=request.tokenizer,
        out=member.path,
        train={**settings, **({} if limit is None else {"max_time": limit})},
        corpus=requested.corpus.model_dump(exclude_unset=True),
        resume=request.resume and member.exists,
        overwrite=True,
    )


def _combine(
    request: TrainRequest,
    folder: RunDir,
    members: list[_Trained],
    seconds: float,
    observer: Observer,
    stop: Callable[[], bool],
) -> TrainResult:
    """Fit the gate, save the mixture, score it and sample it."""
    runs = [member.run for member in members]
    device = pick_device(request.requested.train.runtime.device)
    memory = peak_memory(device)
    corpus = members[0].corpus
    rule_out_ends(runs, corpus)
    split = corpus.splits["val"]
    if len(split.tokens_N):
        mixture = gated_mixture(Auto, runs, split)
    else:
        split, mixture = corpus.splits["train"], equal_mixture(Auto, runs)
    save_mixture(folder, runs, mixture.model, corpus)
    run = Run(folder, folder.read_config(), runs[0].tokenizer, mixture.model)

    progress = scoring_progress(observer, stop, folder.path)
    split = scored_part(run, split, _budget(request.requested.train), observer)
    score = score_own(run, corpus, split, progress=progress)
    uniform = uniform_nll(score, run.model.vocab_size)
    samples = final_samples(run, request.requested.train.seed)
    result = TrainResult(
        run=run,
        score=score,
        steps=sum(member.steps for member in members),
        best_step=sum(member.steps for member in members),
        tokens=sum(member.tokens for member in members),
        seconds=seconds,
        stopped_early=False,
        samples=samples,
        used={"device": str(device), "threads": torch.get_num_threads()},
        peak_memory=memory,
        baseline=None,
        remark=remark("auto", score, uniform=uniform, train_tokens=len(corpus.splits["train"].tokens_N)),
        members=_member_results(members, mixture),
    )
    folder.write_samples("\n".join(samples) + "\n")
    folder.write_result(result.as_dict())
    return result


def _member_results(members: list[_Trained], mixture: FittedMixture) -> tuple[MemberResult, ...]:
    columns = zip(members, mixture.member_nats_K.tolist(), mixture.weights_K.tolist(), strict=True)
    return tuple(
        MemberResult(member.run.name, None if math.isnan(nll) else nll, weight, round(member.seconds, 3))
        for member, nll, weight in columns
    )
