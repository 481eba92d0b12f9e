"""Compare hand-written backprop with eager autograd: time to compute one training step's gradients.

    python benchmarks/backprop.py

The two are timed alternately in one process; prints the medians and the spread of the pairwise ratios.
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
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(n_layer: int, backprop: str, pairs: int) -> str:
    """Time one model and return its table row."""
    torch.manual_seed(0)
    model = BatchNormMLP(BatchNormMLPConfig(n_layer=n_layer, backprop=backprop), VOCAB, 0).train()
    tokens = torch.randint(1, VOCAB, (ROWS, LENGTH + 1))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    valid = torch.ones_like(targets, dtype=torch.bool)

    def hand_written() -> None:
        model.loss_and_grads(inputs, targets)

    def autograd() -> None:
        model.zero_grad(set_to_none=True)
        logits, _ = model(inputs, None, valid)
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()

    for run in (hand_written, autograd):
        run()
    times = [(seconds(hand_written), seconds(autograd)) for _ in range(pairs)]
    hand, auto = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
    ratios = sorted(h / a for h, a in times)
    low, high = ratios[len(ratios) // 10], ratios[-len(ratios) // 10]
    median = statistics.median(ratios)
    return f"| {n_layer} | {backprop} | {hand:.2f} | {auto:.2f} | {median:.2f} | {low:.2f} to {high:.2f} |"


def main(pairs: int = typer.Option(60, help="Timed pairs per row.")) -> None:
    """Print the table."""
    print("| hidden layers | form | by hand, ms | autograd, ms | median ratio | middle 80 % of ratios |")
    print("|---|---|---|---|---|---|")
    for n_layer in (1, 3):
        for backprop in ("fused", "steps"):
            print(compare(n_layer, backprop, pairs), flush=True)


if __name__ == "__main__":
    typer.run(main)
