"""Measure the coverage of 95 % confidence intervals on text from sources of known entropy.

    python benchmarks/coverage.py

Sources are Markov chains that write lines, homogeneous running text, or text whose passages, of random
length, are alternately easy and hard. A `bigram` gets the true transition probabilities and a second one a
blurred version, so their expected bits per byte and the difference are known exactly. Adaptive scores,
with a cache of the text, are compared with their mean. Seeds are simulated as scores that differ by a random
amount.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import typer

from makemore.corpus.splits import encode_documents
from makemore.evaluation.adaptive.ngram_cache import NgramCache
from makemore.evaluation.ranking import PairedResult, compare_to_best
from makemore.evaluation.scoring import make_score, score, token_nats
from makemore.models import MODELS
from makemore.models.base import LanguageModel
from makemore.tokenizers.char import CharTokenizer
from makemore.types import Score

LETTERS = "abcdef"
TOKENIZER = CharTokenizer(LETTERS)
TEXT_BYTES = 100_000
LINES = 400
BLUR = 0.15
"""Weight of the uniform distribution in the second model."""


@dataclass(frozen=True)
class Source:
    """Markov chain over P states, each of which emits a token; token 0 is the boundary and ends a line."""

    mode: str
    probs_PP: np.ndarray
    tokens_P: np.ndarray

    def text(self, rng: np.random.Generator, size: int = TEXT_BYTES) -> list[str]:
        """Generate documents."""
        tokens = self.tokens_P[list(self._walk(rng, size))]
        written = "".join("\n" if token == 0 else LETTERS[token - 1] for token in tokens)
        return written.split("\n")[:LINES] if self.mode == "lines" else [written]

    def _walk(self, rng: np.random.Generator, n: int) -> Iterator[int]:
        cumulative = np.cumsum(self.probs_PP, axis=1)
        rows = (cumulative / cumulative[:, -1:]).tolist()
        # Lines start after a boundary; running text starts in any state.
        state = 0 if self.mode == "lines" else int(rng.choice(len(rows), p=self.stationary()))
        for u in rng.random(n).tolist():
            state = bisect.bisect_right(rows[state], u)
            yield state

    def stationary(self) -> np.ndarray:
        """Stationary distribution (P,) of the states."""
        size = len(self.probs_PP)
        equations = np.vstack([self.probs_PP.T - np.eye(size), np.ones(size)])
        return np.linalg.lstsq(equations, np.append(np.zeros(size), 1.0), rcond=None)[0]

    def bits(self, model_VV: np.ndarray) -> float:
        """Expected bits per byte of a bigram model (V, V)."""
        model_PP = model_VV[self.tokens_P[:, None], self.tokens_P]
        costs_PP = np.where(self.probs_PP > 0, -self.probs_PP * np.log2(np.maximum(model_PP, 1e-300)), 0)
        return float(self.stationary() @ costs_PP.sum(axis=1))

    def best_model(self) -> np.ndarray:
        """Next-token probabilities (V, V) of the best possible bigram."""
        size = len(LETTERS) + 1
        joint_VV = np.full((size, size), 1e-12)
        indices = (self.tokens_P[:, None], self.tokens_P)
        np.add.at(joint_VV, indices, self.stationary()[:, None] * self.probs_PP)
        return joint_VV / joint_VV.sum(axis=1, keepdims=True)


def make_source(mode: str, passage_bytes: int = 0, seed: int = 5) -> Source:
    """Make a source of ``lines`` or ``text``; ``passage_bytes``: mean length of a passage, or 0."""
    rng = np.random.default_rng(seed)
    size = len(LETTERS)
    letters_VV = rng.dirichlet(np.full(size, 0.4), size)
    if passage_bytes:
        hard_VV = 0.3 * letters_VV + 0.7 / size
        stay = 1 - 1 / passage_bytes
        rows = [[letters_VV * stay, letters_VV * (1 - stay)], [hard_VV * (1 - stay), hard_VV * stay]]
        return Source(mode, np.block(rows), np.tile(np.arange(1, size + 1), 2))
    if mode == "text":
        return Source(mode, letters_VV, np.arange(1, size + 1))
    ends_V = rng.uniform(0.05, 0.35, size)
    probs_VV = np.zeros((size + 1, size + 1))
    probs_VV[0, 1:] = 1 / size
    probs_VV[1:, 0] = ends_V
    probs_VV[1:, 1:] = letters_VV * (1 - ends_V[:, None])
    return Source(mode, probs_VV, np.arange(size + 1))


def model_of(probs_VV: np.ndarray) -> LanguageModel:
    """Build a bigram with these probabilities."""
    kind = MODELS.get("bigram")
    model = kind(kind.Config(), len(probs_VV), 0)
    with torch.no_grad():
        model.W.copy_(torch.from_numpy(np.log(np.maximum(probs_VV, 1e-30))))
    return model


def blur(probs_VV: np.ndarray) -> np.ndarray:
    """Mix the probabilities with a uniform distribution."""
    allowed = probs_VV > 1e-6
    return (1 - BLUR) * probs_VV + BLUR * allowed / allowed.sum(axis=1, keepdims=True)


Hits = tuple[float, float]
"""Whether the interval of a score, and of a difference, contains the true value (1 or 0); NaN without one."""


def score_hits(mode: str, repetitions: int, passage_bytes: int = 0, size: int = TEXT_BYTES) -> Iterator[Hits]:
    """Score the known models on newly generated texts."""
    source = make_source(mode, passage_bytes)
    probs = (source.best_model(), blur(source.best_model()))
    truth = [source.bits(c) for c in probs]
    models = [model_of(c) for c in probs]
    for seed in range(repetitions):
        documents = source.text(np.random.default_rng([seed, passage_bytes, size]), size)
        split = encode_documents("val", [documents], source.mode, TOKENIZER)
        scores = [score(model, split, TOKENIZER) for model in models]
        results = compare_to_best([s.unit_nats_U[None] for s in scores], scores[0].unit_bytes_U)
        yield (
            _within(scores[0].ci95_bits_per_byte, truth[0]),
            _difference_within(results, truth[1] - truth[0]),
        )


def adaptive_hits(mode: str, repetitions: int, passage_bytes: int = 0) -> Iterator[Hits]:
    """Score two known models with a cache of the text; the mean of all repetitions is the true value."""
    source = make_source(mode, passage_bytes)
    probs_VV = blur(source.best_model())
    models = [
        model_of(probs_VV),
        model_of((probs_VV > 1e-6) / np.sum(probs_VV > 1e-6, axis=1, keepdims=True)),
    ]
    scores_RM: list[list[Score]] = []
    for seed in range(repetitions):
        documents = source.text(np.random.default_rng([seed, passage_bytes]))
        split = encode_documents("val", [documents], source.mode, TOKENIZER)
        nats = [NgramCache(split, 0).score(token_nats(model, split)) for model in models]
        scores_RM.append([make_score(split, nats_N, TOKENIZER.token_bytes()) for nats_N in nats])
    truth = np.mean([[score.bits_per_byte for score in scores] for scores in scores_RM], axis=0)
    for scores in scores_RM:
        results = compare_to_best([s.unit_nats_U[None] for s in scores], scores[0].unit_bytes_U)
        yield (
            _within(scores[0].ci95_bits_per_byte, truth[0]),
            _difference_within(results, truth[1] - truth[0]),
        )


def seed_hits(seeds: int, repetitions: int) -> Iterator[Hits]:
    """Simulate two models whose seeds differ by noise; the mean over all seeds is the true value."""
    bytes_U = np.full(150, 512)
    for repetition in range(repetitions):
        rng = np.random.default_rng([repetition, seeds])
        difficulty_U = rng.normal(2.0, 0.3, 150)
        offsets = [rng.normal(mean, 0.02, seeds) for mean in (0.0, 0.03)]
        bits = [difficulty_U + offset[:, None] + rng.normal(0, 0.05, (seeds, 150)) for offset in offsets]
        results = compare_to_best([b * bytes_U * math.log(2) for b in bits], bytes_U)
        yield _within(results[0].ci95, 2.0), _difference_within(results, 0.03)


def familywise_error_rate(rows: int, seeds: int, repetitions: int) -> float:
    """Family-wise error rate: share of comparisons of equal models in which one is called worse."""
    bytes_U = np.full(150, 512)
    count = 0
    for repetition in range(repetitions):
        rng = np.random.default_rng([repetition, rows, seeds])
        difficulty_U = rng.normal(2.0, 0.3, 150)
        bits = difficulty_U + rng.normal(0, 0.02, (rows, seeds, 1)) + rng.normal(0, 0.05, (rows, seeds, 150))
        results = compare_to_best(list(bits * bytes_U * math.log(2)), bytes_U)
        count += any(result.beyond_noise for result in results)
    return count / repetitions


def _within(bounds: tuple[float, float], truth: float) -> float:
    return bounds[0] <= truth <= bounds[1] if math.isfinite(bounds[1]) else math.nan


def _difference_within(results: list[PairedResult], truth: float) -> float:
    """Check the interval of the difference; which model scores best is random too."""
    first, second = results
    return (
        _within(second.difference_ci95, truth)
        if first.difference == 0
        else _within(first.difference_ci95, -truth)
    )


CASES: dict[str, Callable[[int], Iterator[Hits]]] = {
    "400 lines": lambda n: score_hits("lines", n),
    "100 KB of homogeneous text": lambda n: score_hits("text", n),
    "100 KB in passages of 0.5 KB": lambda n: score_hits("text", n, 500),
    "100 KB in passages of 1.5 KB": lambda n: score_hits("text", n, 1500),
    "100 KB in passages of 4 KB": lambda n: score_hits("text", n, 4000),
    "20 KB in passages of 1.5 KB": lambda n: score_hits("text", n, 1500, 20_000),
    "10 KB in passages of 1.5 KB": lambda n: score_hits("text", n, 1500, 10_000),
    "20 KB in passages of 4 KB": lambda n: score_hits("text", n, 4000, 20_000),
    "3 KB in passages of 5 KB": lambda n: score_hits("text", n, 5000, 3000),
    "20 KB in passages of 5 KB": lambda n: score_hits("text", n, 5000, 20_000),
    "400 lines, adaptive": lambda n: adaptive_hits("lines", n),
    "100 KB of homogeneous text, adaptive": lambda n: adaptive_hits("text", n),
    "100 KB in passages of 1.5 KB, adaptive": lambda n: adaptive_hits("text", n, 1500),
    "3 seeds": lambda n: seed_hits(3, n),
    "5 seeds": lambda n: seed_hits(5, n),
}


def coverage_rates(case: str, repetitions: int) -> tuple[float, float, float]:
    """Coverage of the intervals of scores and of differences, and the share of scores without an interval."""
    hits = np.array(list(CASES[case](repetitions)), np.float64)
    covered = [float(h[~np.isnan(h)].mean()) if not np.isnan(h).all() else math.nan for h in hits.T]
    return covered[0], covered[1], float(np.isnan(hits[:, 0]).mean())


def main(repetitions: int = typer.Option(200, help="Repetitions per case.")) -> None:
    """Print two tables."""
    print(f"{repetitions} repetitions\n\n| coverage | of scores | of differences | too short |")
    print("|---|---|---|---|")
    for case in CASES:
        cells = [f"{share:.1%}" for share in coverage_rates(case, repetitions)]
        print(f"| {case} | {' | '.join(cells)} |", flush=True)
    print("\n| equal models, some called worse | 1 seed | 3 seeds | 5 seeds |\n|---|---|---|---|")
    for rows in (2, 5, 10):
        rates = [f"{familywise_error_rate(rows, seeds, repetitions):.1%}" for seeds in (1, 3, 5)]
        print(f"| {rows} models | {' | '.join(rates)} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
