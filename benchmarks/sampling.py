"""Measure the sampling speed of each model, and check the fast decoders against plain ``forward``.

    python benchmarks/sampling.py
    python benchmarks/sampling.py --check
    python benchmarks/sampling.py --nanogpt ~/nanoGPT

Weights are random and the vocabulary has shakespeare's size; training doesn't affect the speed except for
`count`, which is fitted to a text (--text FILE, by default random words). --nanogpt also measures
`model.generate` of a nanoGPT clone with the same sizes. Prints the best of a few repeats. Set
OPENBLAS_NUM_THREADS=1 to keep numpy's matrix products single-threaded.
"""

from __future__ import annotations

import importlib.util
import random
import time
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from threading import Event
from types import ModuleType
from typing import Any

import numpy as np
import torch
import typer

from makemore.models import MODELS
from makemore.models.base import CountModel, LanguageModel
from makemore.sampling import SampleParams, generate
from makemore.sampling.decoder import make_decoder
from makemore.sampling.decoders import fast_decoder
from makemore.sampling.text import sample_batch_size
from makemore.sampling.workers import n_sampling_threads, run_in_threads
from makemore.tokenizers import fit_tokenizer
from makemore.types import Batch

VOCAB = 66
REPEATS = 3
N_CHECKED = 10_000
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "transformer, context 64": ("transformer", {"block_size": 64}),
    "transformer, context 256": ("transformer", {"block_size": 256}),
    "transformer, no convolutions, context 64": ("transformer", {"block_size": 64, "conv": 1}),
    "transformer, gpt2 style, context 64": ("transformer", {"block_size": 64, "style": "gpt2"}),
    "lstm 384": ("lstm", {"n_hidden": 384}),
    "gru 384": ("gru", {"n_hidden": 384}),
    "rnn 384": ("rnn", {"n_hidden": 384}),
    "wavenet, context 32, 256 wide": ("wavenet", {"block_size": 32, "n_embd": 64, "n_hidden": 256}),
    "wavenet, context 8": ("wavenet", {}),
    "mlp": ("mlp", {}),
    "batchnorm-mlp": ("batchnorm-mlp", {}),
    "bow": ("bow", {}),
    "bigram": ("bigram", {}),
    "count, order 7": ("count", {"order": 7}),
}


def make_text(words: int = 150_000) -> str:
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("etaoinshrdlucmfwyp", k=rng.randint(2, 9))) for _ in range(4000)]
    return " ".join(vocabulary[int(len(vocabulary) * rng.random() ** 3)] for _ in range(words))


def build(name: str, settings: dict[str, Any], text: str) -> LanguageModel:
    """Build a model with random weights, or fit a count model to the text."""
    torch.manual_seed(0)
    model_class = MODELS.get(name)
    model = model_class(model_class.Config(**settings), VOCAB, 0)
    if isinstance(model, CountModel):
        tokens = torch.from_numpy(fit_tokenizer("char", text).encode(text).astype(np.int64))[None] % VOCAB
        model.count_batch(Batch(tokens[:, :-1], tokens[:, 1:]))
        model.finish()
        return model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.08)
    return model.eval()


def steps(
    model: LanguageModel, samples: range, n: int, fast: bool, greedy: bool = False
) -> Iterator[np.ndarray]:
    prompt = np.zeros((1, 1), np.int64)
    return generate(model, prompt, n, SampleParams(greedy=greedy), seed=1, samples=samples, fast=fast)


def tokens_per_second(sample: Callable[[int], int], n: int) -> float:
    """Best rate of ``sample``, which returns the number of tokens generated, after a warm-up call."""
    sample(max(2, n // 10))
    best = 0.0
    for _ in range(REPEATS):
        start = time.perf_counter()
        best = max(best, sample(n) / (time.perf_counter() - start))
    return best


def speed(model: LanguageModel, rows: int, n: int) -> float:
    """Tokens per second as in `makemore sample`: in batches, divided among threads."""

    def sample(n: int) -> int:
        def part(samples: range, _: Event) -> list[int]:
            return [len(ids) for ids in steps(model, samples, n, True)]

        edges = [*range(0, rows, sample_batch_size(model, n + 1)), rows]
        return sum(
            sum(run_in_threads(part, range(a, b), n_sampling_threads(model, b - a)))
            for a, b in pairwise(edges)
        )

    return tokens_per_second(sample, n)


def plain_speed(model: LanguageModel, rows: int, n: int) -> float:
    return tokens_per_second(lambda n: sum(len(ids) for ids in steps(model, range(rows), n, False)), n)


def drift(model: LanguageModel, n: int) -> float:
    """Ratio of the time per token late in a long sample to the time early in it."""
    stream, times = steps(model, range(1), 6 * n, True), []
    for _ in range(6):
        start = time.perf_counter()
        for _ in islice(stream, n):
            pass
        times.append(time.perf_counter() - start)
    return min(times[4:]) / min(times[1:3])


def differences(model: LanguageModel) -> tuple[float, int]:
    """Compare the fast decoder with plain ``forward`` on a greedy text: largest difference of logits, and
    number of different tokens."""
    tokens = np.concatenate(list(steps(model, range(1), N_CHECKED, True, greedy=True)))
    prompt = np.zeros((1, 1), np.int64)
    fast, plain = (make_decoder(model, prompt, N_CHECKED + 1, f) for f in (True, False))
    a, b = fast.start(), plain.start()
    largest, n_different = 0.0, 0
    for i, token in enumerate(tokens):
        finite = np.isfinite(b)
        largest = max(largest, float(np.abs(a - b)[finite].max()))
        n_different += int(b[0].argmax() != token)
        if i < N_CHECKED - 1:
            a, b = fast.step(tokens[i : i + 1]), plain.step(tokens[i : i + 1])
    return largest, n_different


def nanogpt_module(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    if spec is None or spec.loader is None or not (folder / "model.py").is_file():
        raise typer.BadParameter(f"{folder} has no model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def nanogpt_speed(module: ModuleType, sizes: dict[str, int], rows: int, n: int, device: str = "cpu") -> float:
    """Tokens per second of its own generation; in bfloat16 on a GPU, as in its sample.py."""
    torch.manual_seed(0)
    model = module.GPT(module.GPTConfig(vocab_size=VOCAB, dropout=0.0, bias=False, **sizes)).to(device).eval()

    def sample(n: int) -> int:
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            prompt = torch.zeros(rows, 1, dtype=torch.int64, device=device)
            return model.generate(prompt, n).cpu().numel() - rows

    return tokens_per_second(sample, n)


def main(
    nanogpt: Path | None = typer.Option(None, help="Also measure this clone of nanoGPT."),
    text: Path | None = typer.Option(None, help="Text to fit the count model to."),
    only: str = typer.Option("", help="Only models whose label contains this."),
    check: bool = typer.Option(False, help="Check the fast decoders instead of timing them."),
    device: str = typer.Option("cpu", help="Device of the models."),
) -> None:
    """Print the table."""
    source = make_text() if text is None else text.read_text(encoding="utf-8")
    cases = {label: case for label, case in CASES.items() if only in label}
    if check:
        print(f"| model | largest difference of logits | differing tokens of {N_CHECKED:,} (greedy) |")
        print("|---|---|---|")
        for label, (name, settings) in cases.items():
            largest, n_different = differences(build(name, settings, source).to(device))
            print(f"| {label} | {largest:.1e} | {n_different} |", flush=True)
        return
    print(f"{torch.get_num_threads()} threads\n")
    print("| tokens/s | batch 1 | batch 64 | batch 1024 | late / early token | plain forward, 1 and 64 |")
    print("|---|---|---|---|---|---|")
    for label, (name, settings) in cases.items():
        model = build(name, settings, source).to(device)
        fast_decoder(model)  # build its cached data once, before the threads start
        fast = [f"{speed(model, rows, n):,.0f}" for rows, n in ((1, 1500), (64, 300), (1024, 100))]
        plain = [f"{plain_speed(model, rows, n):,.0f}" for rows, n in ((1, 200), (64, 100))]
        print(f"| {label} | {' | '.join(fast)} | {drift(model, 500):.2f} | {', '.join(plain)} |", flush=True)
    if nanogpt is not None:
        module = nanogpt_module(nanogpt)
        for context in (64, 256):
            sizes = {"block_size": context, "n_layer": 4, "n_head": 4, "n_embd": 128}
            cells = [f"{nanogpt_speed(module, sizes, rows, n):,.0f}" for rows, n in ((1, 300), (64, 100))]
            print(f"| nanoGPT, context {context} | {' | '.join(cells)} | | | |", flush=True)


if __name__ == "__main__":
    typer.run(main)
