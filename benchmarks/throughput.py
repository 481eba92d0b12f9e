"""Tokens a second of every rung's training step, and how near that comes to the machine's peak.

    python benchmarks/throughput.py shakespeare
    python benchmarks/throughput.py names --models transformer,lstm --seconds 10

A step is all of it: batch, gradients, clipping, optimizer, under the rung's own recipe. FLOPs are those of
matrix products and convolutions, counted as one step calls them, the optimizer's included; nothing
element-wise counts. The peak is the best rate of square matrix products of the same type, measured first.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from makemore.models import MODELS
from makemore.models.base import CountModel
from makemore.training.assembly import make_trainer
from makemore.training.observers import NullObserver
from makemore.training.plan import Plan
from makemore.training.planning import prepare
from makemore.training.request import TrainRequest
from makemore.training.trainer import Trainer

WARM_UP = 3
SIZES = (512, 1024, 2048, 4096, 8192)


def wait(device: torch.device) -> None:
    """Until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if device.type == "mps":
        torch.mps.synchronize()


def seconds_of(run: Callable[[], Any], device: torch.device) -> float:
    wait(device)
    begun = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - begun


def peak(dtype: torch.dtype, device: torch.device) -> float:
    """The best rate of square matrix products, in FLOP/s."""
    best = 0.0
    for size in SIZES:
        a = torch.randn(size, size, device=device).to(dtype)
        first = min(seconds_of(lambda a=a: a @ a, device) for _ in range(2))
        times = min(1000, max(2, int(0.2 / first)))

        def repeat(a: Tensor = a, times: int = times) -> None:
            for _ in range(times):
                a @ a

        best = max(best, times * 2 * size**3 / seconds_of(repeat, device))
        if first > 0.2:  # larger ones are no faster
            break
    return best


def recurrent(factor: int) -> Callable[..., int]:
    """FLOPs of a recurrent kernel: all its matrices, at every token."""

    def flops(x_shape: Any, *others: Any, out_shape: Any = None, **settings: Any) -> int:
        shapes = [s for other in others for s in (other if isinstance(other, list) else [other])]
        matrices = [s for s in shapes if isinstance(s, torch.Size) and len(s) == 2]
        return factor * 2 * x_shape[0] * x_shape[1] * sum(rows * columns for rows, columns in matrices)

    return flops


KERNELS = {
    torch.ops.aten.mkldnn_rnn_layer: recurrent(1),
    torch.ops.aten.mkldnn_rnn_layer_backward: recurrent(2),
    torch.ops.aten._cudnn_rnn: recurrent(1),
    torch.ops.aten._cudnn_rnn_backward: recurrent(2),
}


@dataclass(frozen=True)
class Speed:
    """``flops``: of a step; ``setup``: seconds of the first step."""

    tokens: float
    steps: float
    flops: int
    setup: float

    def cells(self, limit: float) -> list[str]:
        rate = self.flops * self.steps
        share = f"{rate / limit:.0%}" if rate else "–"
        return [f"{self.tokens:,.0f}", f"{rate / 1e9:,.1f}" if rate else "–", share]


def planned(data: str, model: str, compile: str, settings: list[str]) -> Plan:
    """A rung under its recipe for 90 s."""
    train = {"max_time": 90.0, "compile": compile}
    with tempfile.TemporaryDirectory() as folder:
        return prepare(
            TrainRequest(data, model, out=Path(folder), train=train, settings=tuple(settings)), NullObserver()
        )


def flops_of_a_step(trainer: Trainer) -> int:
    if isinstance(trainer.learner.model, CountModel):
        return 0
    with FlopCounterMode(display=False, custom_mapping=KERNELS) as counter:
        trainer.advance(0.0)
    return counter.get_total_flops()


def measure(plan: Plan, seconds: float, flops: int | None = None) -> Speed:
    """Steps for some seconds; ``flops`` of a step are counted where not known."""
    trainer = make_trainer(plan, lambda: False)
    device = plan.device
    setup = seconds_of(lambda: trainer.advance(0.0), device)
    if flops is None:
        flops = flops_of_a_step(trainer)
    for _ in range(WARM_UP):
        trainer.advance(0.0)
    tokens: list[Tensor] = []
    wait(device)
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds and (metrics := trainer.advance(0.0)) is not None:
        tokens.append(metrics.tokens)
    wait(device)
    passed = time.perf_counter() - begun
    total = float(torch.stack(tokens).sum()) if tokens else 0.0
    return Speed(total / passed, len(tokens) / passed, flops, setup)


def row(
    data: str, model: str, compiling: bool, seconds: float, settings: list[str], peaks: dict[Any, float]
) -> str:
    plan = planned(data, model, "no", settings)
    if plan.precision not in peaks:
        peaks[plan.precision] = peak(plan.precision, plan.device)
    limit = peaks[plan.precision]
    eager = measure(plan, seconds)
    cells = [model, f"{plan.model.n_parameters():,}", str(plan.precision).removeprefix("torch.")]
    cells += [f"{plan.train.batch_tokens:,}", *eager.cells(limit)]
    if compiling and not isinstance(plan.model, CountModel):
        in_c = planned(data, model, "auto", settings)
        fast = in_c if in_c.native else planned(data, model, "yes", settings)
        faster = measure(fast, seconds, eager.flops)
        cells += [*faster.cells(limit), f"{faster.setup:.0f}"]
    else:
        cells += ["–"] * 4
    return f"| {' | '.join(cells)} |"


def main(
    data: str = typer.Argument("shakespeare", help="A data set or a text."),
    models: str = typer.Option("", help="Rungs (default: all)."),
    seconds: float = typer.Option(5.0, help="Seconds of steps for each figure."),
    compiling: bool = typer.Option(
        True, "--compile/--no-compile", help="Measure steps in C or compiled, too."
    ),
    settings: list[str] = typer.Option([], "--set", help="A setting; repeatable."),
) -> None:
    """Print one table."""
    chosen = models.split(",") if models else [n for n in MODELS if MODELS.get(n).is_trainable]
    peaks: dict[Any, float] = {}
    heads = ["rung", "parameters", "type", "batch", "tokens/s", "GFLOP/s", "of peak"]
    heads += ["in C or compiled: tokens/s", "GFLOP/s", "of peak", "first step, s"]
    print(f"| {' | '.join(heads)} |")
    print("|---" * len(heads) + "|", flush=True)
    for model in chosen:
        print(row(data, model, compiling, seconds, settings, peaks), flush=True)
    for dtype, limit in peaks.items():
        print(f"\npeak, {str(dtype).removeprefix('torch.')}: {limit / 1e9:,.0f} GFLOP/s", flush=True)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")


if __name__ == "__main__":
    typer.run(main)
