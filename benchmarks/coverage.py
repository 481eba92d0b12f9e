"""How often 95 % intervals hold the truth: text drawn from sources of known entropy, scored many times.

    python benchmarks/coverage.py

Sources are Markov chains: of lines, of even running text, and of text whose scenes, of random length, are by
turns easy and hard. A `bigram` is given what it can know of them, so that its expected bits per byte are
known exactly; a second one knows it less well, and the expected difference is known too. Seeds are simulated:
figures of runs that differ by a random amount.
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
from makemore.evaluation.intervals import PairedResult, compare_to_best
from makemore.evaluation.scoring import score
from makemore.models import MODELS
from makemore.models.base import LanguageModel
from makemore.tokenizers.char import CharTokenizer

LETTERS = "abcdef"
TOKENIZER = CharTokenizer(LETTERS)
TEXT_BYTES = 100_000
LINES = 400
BLUR = 0.15
"""How much of the uniform distribution the second model takes in."""


@dataclass(frozen=True)
class Source:
    """A Markov chain over places, each of which writes a token: 0 is the boundary, which ends a line."""

    mode: str
    chances_PP: np.ndarray
    tokens_P: np.ndarray

    def text(self, rng: np.random.Generator, size: int = TEXT_BYTES) -> list[str]:
        """Documents drawn from it."""
        tokens = self.tokens_P[list(self._walk(rng, size))]
        written = "".join("\n" if token == 0 else LETTERS[token - 1] for token in tokens)
        return written.split("\n")[:LINES] if self.mode == "lines" else [written]

    def _walk(self, rng: np.random.Generator, n: int) -> Iterator[int]:
        sums = np.cumsum(self.chances_PP, axis=1)
        rows = (sums / sums[:, -1:]).tolist()
        # Lines begin after a boundary; a text begins anywhere.
        place = 0 if self.mode == "lines" else int(rng.choice(len(rows), p=self.shares()))
        for chance in rng.random(n).tolist():
            place = bisect.bisect_right(rows[place], chance)
            yield place

    def shares(self) -> np.ndarray:
        """(P,) share of each place in an endless text."""
        size = len(self.chances_PP)
        equations = np.vstack([self.chances_PP.T - np.eye(size), np.ones(size)])
        return np.linalg.lstsq(equations, np.append(np.zeros(size), 1.0), rcond=None)[0]

    def bits(self, model_VV: np.ndarray) -> float:
        """Expected bits per byte of a model that knows the token before."""
        said_PP = model_VV[self.tokens_P[:, None], self.tokens_P]
        costs_PP = np.where(self.chances_PP > 0, -self.chances_PP * np.log2(np.maximum(said_PP, 1e-300)), 0)
        return float(self.shares() @ costs_PP.sum(axis=1))

    def best_model(self) -> np.ndarray:
        """(V, V) the chances of each token after each, all that a bigram can know."""
        size = len(LETTERS) + 1
        joint_VV = np.full((size, size), 1e-12)
        places = (self.tokens_P[:, None], self.tokens_P)
        np.add.at(joint_VV, places, self.shares()[:, None] * self.chances_PP)
        return joint_VV / joint_VV.sum(axis=1, keepdims=True)


def make_source(mode: str, scene_bytes: int = 0, seed: int = 5) -> Source:
    """Of ``lines``, or of a ``text``, which may be by turns easy and hard for so many bytes on average."""
    rng = np.random.default_rng(seed)
    size = len(LETTERS)
    letters_VV = rng.dirichlet(np.full(size, 0.4), size)
    if scene_bytes:
        hard_VV = 0.3 * letters_VV + 0.7 / size
        stay = 1 - 1 / scene_bytes
        rows = [[letters_VV * stay, letters_VV * (1 - stay)], [hard_VV * (1 - stay), hard_VV * stay]]
        return Source(mode, np.block(rows), np.tile(np.arange(1, size + 1), 2))
    if mode == "text":
        return Source(mode, letters_VV, np.arange(1, size + 1))
    ends_V = rng.uniform(0.05, 0.35, size)
    chances_VV = np.zeros((size + 1, size + 1))
    chances_VV[0, 1:] = 1 / size
    chances_VV[1:, 0] = ends_V
    chances_VV[1:, 1:] = letters_VV * (1 - ends_V[:, None])
    return Source(mode, chances_VV, np.arange(size + 1))


def model_of(chances_VV: np.ndarray) -> LanguageModel:
    """A bigram that says exactly this."""
    kind = MODELS.get("bigram")
    model = kind(kind.Config(), len(chances_VV), 0)
    with torch.no_grad():
        model.W.copy_(torch.from_numpy(np.log(np.maximum(chances_VV, 1e-30))))
    return model


def blurred(chances_VV: np.ndarray) -> np.ndarray:
    """The same, known less well."""
    allowed = chances_VV > 1e-6
    return (1 - BLUR) * chances_VV + BLUR * allowed / allowed.sum(axis=1, keepdims=True)


Held = tuple[bool, bool]
"""Whether the interval of a score held the truth, and that of a difference."""


def scores_held(mode: str, repetitions: int, scene_bytes: int = 0, size: int = TEXT_BYTES) -> Iterator[Held]:
    """Of models that are known, on texts drawn anew."""
    source = make_source(mode, scene_bytes)
    chances = (source.best_model(), blurred(source.best_model()))
    truth = [source.bits(c) for c in chances]
    models = [model_of(c) for c in chances]
    for seed in range(repetitions):
        documents = source.text(np.random.default_rng([seed, scene_bytes, size]), size)
        split = encode_documents("val", [documents], source.mode, TOKENIZER)
        found = [score(model, split, TOKENIZER) for model in models]
        judged = compare_to_best([s.unit_nats_U[None] for s in found], found[0].unit_bytes_U)
        yield (
            _within(found[0].ci95_bits_per_byte, truth[0]),
            _difference_within(judged, truth[1] - truth[0]),
        )


def seeds_held(seeds: int, repetitions: int) -> Iterator[Held]:
    """Of two models, each by runs whose skill is a matter of luck: the mean over all luck is the truth."""
    bytes_U = np.full(150, 512)
    for repetition in range(repetitions):
        rng = np.random.default_rng([repetition, seeds])
        hard_U = rng.normal(2.0, 0.3, 150)
        skills = [rng.normal(mean, 0.02, seeds) for mean in (0.0, 0.03)]
        bits = [hard_U + skill[:, None] + rng.normal(0, 0.05, (seeds, 150)) for skill in skills]
        judged = compare_to_best([b * bytes_U * math.log(2) for b in bits], bytes_U)
        yield _within(judged[0].ci95, 2.0), _difference_within(judged, 0.03)


def _within(bounds: tuple[float, float], truth: float) -> bool:
    return bounds[0] <= truth <= bounds[1]


def _difference_within(judged: list[PairedResult], truth: float) -> bool:
    """Of two models, of which either may have come out best: that is luck as well."""
    first, second = judged
    return (
        _within(second.difference_ci95, truth)
        if first.difference == 0
        else _within(first.difference_ci95, -truth)
    )


CASES: dict[str, Callable[[int], Iterator[Held]]] = {
    "400 lines": lambda n: scores_held("lines", n),
    "100 KB of even text": lambda n: scores_held("text", n),
    "100 KB in scenes of 0.5 KB": lambda n: scores_held("text", n, 500),
    "100 KB in scenes of 1.5 KB": lambda n: scores_held("text", n, 1500),
    "100 KB in scenes of 4 KB": lambda n: scores_held("text", n, 4000),
    "20 KB in scenes of 1.5 KB": lambda n: scores_held("text", n, 1500, 20_000),
    "10 KB in scenes of 1.5 KB": lambda n: scores_held("text", n, 1500, 10_000),
    "20 KB in scenes of 4 KB": lambda n: scores_held("text", n, 4000, 20_000),
    "3 seeds": lambda n: seeds_held(3, n),
    "5 seeds": lambda n: seeds_held(5, n),
}


def shares(case: str, repetitions: int) -> tuple[float, float]:
    """How often the intervals held the truth, of scores and of differences."""
    held = np.array(list(CASES[case](repetitions)))
    return float(held[:, 0].mean()), float(held[:, 1].mean())


def main(repetitions: int = typer.Option(200, help="Texts drawn of each kind.")) -> None:
    """Print a table."""
    print(
        f"{repetitions} repetitions\n\n| | 95 % interval of a score held | of a difference |\n|---|---|---|"
    )
    for case in CASES:
        alone, difference = shares(case, repetitions)
        print(f"| {case} | {alone:.1%} | {difference:.1%} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
