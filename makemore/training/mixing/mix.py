"""Mixtures: combine several runs with one tokenizer into a weighted ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from makemore.corpus.splits import Corpus
from makemore.errors import UserError
from makemore.evaluation.evaluate import score_own
from makemore.evaluation.scoring import fit_mixture_weights, token_nats
from makemore.models.base import MixtureModel
from makemore.models.mixture import Mixture
from makemore.models.mixture.gate import UNITS
from makemore.runs.directory import RunDir
from makemore.runs.run import Run, load, versions
from makemore.runs.schema import Member, RunRecord
from makemore.runs.training_lines import train_line_hashes
from makemore.training.mixing.gating import fit_gates
from makemore.types import Score, Split


@dataclass(frozen=True, kw_only=True)
class MixResult:
    """A mixture, its weights, and scores; the weights are fitted on ``val`` and evaluated on ``test``."""

    run: Run
    members: list[str]
    weights: list[float]
    val: Score
    test: Score | None

    def as_dict(self) -> dict[str, Any]:
        return {
            "run": str(self.run.folder.path),
            "weights": dict(zip(self.members, self.weights, strict=True)),
            "val": self.val.as_dict(),
            "test": None if self.test is None else self.test.as_dict(),
        }


def check_members(runs: Sequence[Run]) -> None:
    """Raise UserError unless there are at least two runs with the same tokenizer, text and split."""
    if len(runs) < 2:
        raise UserError("a mixture needs at least two runs; name another run")
    first = runs[0]
    for run in runs:
        if isinstance(run.model, MixtureModel):
            raise UserError(f"{run.name} is a mixture itself; pass its members instead")
        if run.tokenizer.to_dict() != first.tokenizer.to_dict():
            raise UserError(f"{run.name} and {first.name} have different tokenizers; choose other runs")
        if run.config.text.digests != first.config.text.digests:
            raise UserError(f"{run.name} and {first.name} have different splits; choose other runs")


def mix(
    paths: Sequence[str | Path], out: Path, device: str = "auto", overwrite: bool = False, gate: bool = True
) -> MixResult:
    """Mix runs by a gate, or by constant weights, fitted on val.

    Raises UserError if the runs are incompatible or have no val split.
    """
    runs = [load(path, device) for path in paths]
    check_members(runs)
    folder = RunDir(out)
    if folder.is_occupied and not overwrite:
        raise UserError(f"{out} already holds a run; add --overwrite or name another --out")
    corpus = runs[0].corpus()
    val, test = corpus.splits["val"], corpus.splits["test"]
    if not len(val.tokens_N):
        raise UserError("no val split to fit mixture weights on; train these runs with one")
    rule_out_ends(runs, corpus)
    mixture = gated_mixture(Mixture, runs, val) if gate else _constant_mixture(runs, val)
    with folder.locked():
        folder.clear()
        save_mixture(folder, runs, mixture.model, corpus)
    run = load(out, device)
    result = MixResult(
        run=run,
        members=[r.name for r in runs],
        weights=mixture.weights_K.tolist(),
        val=score_own(run, corpus, val),
        test=score_own(run, corpus, test) if len(test.tokens_N) else None,
    )
    results = [saved for run in runs if (saved := run.folder.read_result())]
    cost = {"seconds": sum(r.seconds for r in results), "tokens": sum(r.tokens for r in results)}
    folder.write_result({**result.as_dict(), **cost})
    return result


def rule_out_ends(runs: Sequence[Run], corpus: Corpus) -> None:
    """Rule out the boundary where it can't come, also in runs of earlier versions."""
    for run in runs:
        run.model.set_document_ends(corpus.document_ends)


class FittedMixture(NamedTuple):
    """A mixture, and what its weights were fitted to."""

    model: Mixture
    weights_K: np.ndarray
    """Share of each member in the weights, on average."""
    member_nats_K: np.ndarray
    """Nats per token of each member on the text that the weights were fitted on."""


def gated_mixture(kind: type[Mixture], runs: Sequence[Run], val: Split) -> FittedMixture:
    """Mix runs by a gate."""
    model = _make_mixture(kind, runs, gate=UNITS)
    weights_K, nats_K = fit_gates(model, val)
    model.mixing.copy_(torch.from_numpy(weights_K))
    return FittedMixture(model, weights_K, nats_K)


def equal_mixture(kind: type[Mixture], runs: Sequence[Run]) -> FittedMixture:
    """Mix runs by equal weights, without a text to fit them on."""
    K = len(runs)
    return FittedMixture(_make_mixture(kind, runs, gate=0), np.full(K, 1 / K), np.full(K, np.nan))


def _constant_mixture(runs: Sequence[Run], val: Split) -> FittedMixture:
    nats_KN = np.stack([token_nats(run.model, val) for run in runs])
    weights_K = fit_mixture_weights(nats_KN)
    model = _make_mixture(Mixture, runs, gate=0)
    model.mixing.copy_(torch.from_numpy(weights_K))
    return FittedMixture(model, weights_K, nats_KN.mean(axis=1))


def _make_mixture(kind: type[Mixture], runs: Sequence[Run], gate: int) -> Mixture:
    """A mixture of the runs' models themselves, not of copies."""
    tokenizer, members = runs[0].tokenizer, tuple(run.model.config for run in runs)
    config = kind.Config(members=members, gate=gate)
    model = kind(config, tokenizer.vocab_size, tokenizer.boundary_id)
    model.set_members([run.model for run in runs])
    return model.eval()


def save_mixture(folder: RunDir, runs: Sequence[Run], model: Mixture, corpus: Corpus) -> None:
    """Write the run of a mixture."""
    first = runs[0].config
    config = RunRecord.for_model(model.config.name)(
        model=model.config,
        tokenizer=first.tokenizer,
        corpus=first.corpus,
        text=first.text,
        document_ends=corpus.document_ends,
        mixed=tuple(Member(run=run.name, train=run.config.train) for run in runs),
        versions=versions(),
    )
    run_id = folder.create(config, runs[0].tokenizer.to_dict(), seen_U=train_line_hashes(corpus))
    folder.write_model(model.state_dict(), run_id)
