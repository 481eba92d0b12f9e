"""Mixtures: combine several runs with one tokenizer into a weighted ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from makemore.corpus.splits import Corpus
from makemore.errors import UserError
from makemore.evaluation.copies import with_copies
from makemore.evaluation.scoring import fit_mixture_weights, make_score, mix_nats, score, token_nats
from makemore.models.base import MixtureModel
from makemore.models.mixture import Mixture, MixtureConfig
from makemore.runs.directory import RunDir
from makemore.runs.run import Run, load, versions
from makemore.runs.schema import Member, RunRecord
from makemore.runs.training_lines import train_line_hashes
from makemore.types import Score


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


def mix(paths: Sequence[str | Path], out: Path, device: str = "auto", overwrite: bool = False) -> MixResult:
    """Mix runs with weights fitted by EM on val. Raises UserError if the runs are incompatible."""
    runs = [load(path, device) for path in paths]
    check_members(runs)
    folder = RunDir(out)
    if folder.is_occupied and not overwrite:
        raise UserError(f"{out} already holds a run; add --overwrite or name another --out")
    corpus = runs[0].corpus()
    val = corpus.splits["val"]
    if not len(val.tokens_N):
        raise UserError("no val split to fit mixture weights on; train these runs with one")
    nats_KN = np.stack([token_nats(run.model, val) for run in runs])
    weights_K = fit_mixture_weights(nats_KN)
    model = _build_mixture(runs, weights_K)
    with folder.locked():
        folder.clear()
        _save(folder, runs, model, corpus)
    run = load(out, device)
    test = corpus.splits["test"]
    result = MixResult(
        run=run,
        members=[r.name for r in runs],
        weights=weights_K.tolist(),
        val=with_copies(
            make_score(val, mix_nats(nats_KN, weights_K), run.tokenizer.token_bytes()), corpus, val
        ),
        test=with_copies(score(run.model, test, run.tokenizer), corpus, test) if len(test.tokens_N) else None,
    )
    results = [saved for run in runs if (saved := run.folder.read_result())]
    cost = {"seconds": sum(r.seconds for r in results), "tokens": sum(r.tokens for r in results)}
    folder.write_result({**result.as_dict(), **cost})
    return result


def _build_mixture(runs: Sequence[Run], weights_K: np.ndarray) -> Mixture:
    first = runs[0].tokenizer
    config = MixtureConfig(members=tuple(run.config.model for run in runs))
    model = Mixture(config, first.vocab_size, first.boundary_id)
    for member, run in zip(model.members, runs, strict=True):
        member.load_state_dict(run.model.state_dict())
    model.mixing.copy_(torch.from_numpy(weights_K))
    return model


def _save(folder: RunDir, runs: Sequence[Run], model: Mixture, corpus: Corpus) -> None:
    first = runs[0].config
    config = RunRecord.for_model("mixture")(
        model=model.config,
        tokenizer=first.tokenizer,
        corpus=first.corpus,
        text=first.text,
        mixed=tuple(Member(run=run.name, train=run.config.train) for run in runs),
        versions=versions(),
    )
    run_id = folder.create(config, runs[0].tokenizer.to_dict(), seen_U=train_line_hashes(corpus))
    folder.write_model(model.state_dict(), run_id)
