"""Hand-written backprop against eager autograd, one training step's gradients, as a ratio.

    python benchmarks/backprop.py

The two are timed in turn in one process; medians and the spread of the pairwise ratios are printed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import typer
from torch.nn import functional as F

from makemore.models.batchnorm_mlp import BatchNormMLP, BatchNormMLPConfig

VOCAB, ROWS, LENGTH = 27, 64, 64


def seconds(run: Callable[[], None]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def compare(n_layer: int, backprop: str, pairs: int) -> str:
    """A line of the table."""
    torch.manual_seed(0)
    model = BatchNormMLP(BatchNormMLPConfig(n_layer=n_layer, backprop=backprop), VOCAB, 0).train()
    tokens = torch.randint(1, VOCAB, (ROWS, LENGTH + 1))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    valid = torch.ones_like(targets, dtype=torch.bool)

    def gradient_source() -> None:
        model.loss_and_grads(inputs, targets)

    def by_autograd() -> None:
        model.zero_grad(set_to_none=True)
        logits, _ = model(inputs, None, valid)
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()

    for run in (gradient_source, by_autograd):
        run()
    times = [(seconds(gradient_source), seconds(by_autograd)) for _ in range(pairs)]
    hand, auto = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
    ratios = sorted(h / a for h, a in times)
    low, high = ratios[len(ratios) // 10], ratios[-len(ratios) // 10]
    middle = statistics.median(ratios)
    return f"| {n_layer} | {backprop} | {hand:.2f} | {auto:.2f} | {middle:.2f} | {low:.2f} to {high:.2f} |"


def main(pairs: int = typer.Option(60, help="Timed pairs of each line.")) -> None:
    """Print the table."""
    print("| hidden layers | form | by hand, ms | autograd, ms | ratio | 80 % of ratios |")
    print("|---|---|---|---|---|---|")
    for n_layer in (1, 3):
        for backprop in ("fused", "steps"):
            print(compare(n_layer, backprop, pairs), flush=True)


if __name__ == "__main__":
    typer.run(main)
