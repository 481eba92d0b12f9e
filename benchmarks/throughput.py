"""Measure each model's training speed in tokens per second and as a fraction of the machine's peak FLOP/s.

    python benchmarks/throughput.py shakespeare
    python benchmarks/throughput.py names --models transformer,lstm --seconds 10

A step includes the batch, gradients, clipping and optimizer, with the model's default recipe. FLOPs count
the matrix products and convolutions in one step, including the optimizer's; element-wise operations don't
count. The peak is the best measured rate of square matrix products of the same dtype.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import typer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from makemore.models import MODELS
from makemore.models.base import CountModel
from makemore.training.assembly import make_trainer
from makemore.training.observers import Observer
from makemore.training.plan import Plan
from makemore.training.planning import prepare
from makemore.training.request import TrainRequest
from makemore.training.trainer import Trainer

WARM_UP = 3
SIZES = (512, 1024, 2048, 4096, 8192)


def synchronize(device: torch.device) -> None:
    """Wait for the device to finish its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if device.type == "mps":
        torch.mps.synchronize()


def seconds_of(run: Callable[[], Any], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def peak(dtype: torch.dtype, device: torch.device) -> float:
    """Best rate of square matrix products, in FLOP/s."""
    best = 0.0
    for size in SIZES:
        a = torch.randn(size, size, device=device).to(dtype)
        first = min(seconds_of(lambda a=a: a @ a, device) for _ in range(2))
        times = min(1000, max(2, int(0.2 / first)))

        def repeat(a: Tensor = a, times: int = times) -> None:
            for _ in range(times):
                a @ a

        best = max(best, times * 2 * size**3 / seconds_of(repeat, device))
        if first > 0.2:  # larger matrices aren't faster
            break
    return best


def recurrent_flops(factor: int) -> Callable[..., int]:
    """FLOP counter of a recurrent kernel: every weight matrix at every token."""

    def flops(x_shape: Any, *others: Any, out_shape: Any = None, **settings: Any) -> int:
        shapes = [s for other in others for s in (other if isinstance(other, list) else [other])]
        matrices = [s for s in shapes if isinstance(s, torch.Size) and len(s) == 2]
        return factor * 2 * x_shape[0] * x_shape[1] * sum(rows * columns for rows, columns in matrices)

    return flops


KERNELS = {
    torch.ops.aten.mkldnn_rnn_layer: recurrent_flops(1),
    torch.ops.aten.mkldnn_rnn_layer_backward: recurrent_flops(2),
    torch.ops.aten._cudnn_rnn: recurrent_flops(1),
    torch.ops.aten._cudnn_rnn_backward: recurrent_flops(2),
}


@dataclass(frozen=True)
class Speed:
    """Tokens and steps per second, FLOPs per step, and seconds of the first step (``setup``)."""

    tokens: float
    steps: float
    flops: int
    setup: float

    def cells(self, peak_flops: float) -> list[str]:
        rate = self.flops * self.steps
        fraction = f"{rate / peak_flops:.0%}" if rate else "–"
        return [f"{self.tokens:,.0f}", f"{rate / 1e9:,.1f}" if rate else "–", fraction]


def make_plan(data: str, model: str, compile: str, settings: list[str]) -> Plan:
    """Plan a run with the model's recipe for 90 s."""
    train = {"max_time": 90.0, "compile": compile}
    with tempfile.TemporaryDirectory() as folder:
        return prepare(
            TrainRequest(input=data, model=model, out=Path(folder), train=train, settings=tuple(settings)),
            Observer(),
        )


def count_step_flops(trainer: Trainer) -> int:
    if isinstance(trainer.learner.model, CountModel):
        return 0
    # torch doesn't see what Muon multiplies in C.
    in_torch = patch("makemore.training.optimizers.muon.muon_step", return_value=False)
    with in_torch, FlopCounterMode(display=False, custom_mapping=KERNELS) as counter:
        trainer.advance(0.0)
    return counter.get_total_flops()


def measure(plan: Plan, seconds: float, flops: int | None = None) -> Speed:
    """Train for some seconds; count the FLOPs of a step unless they are given."""
    trainer = make_trainer(plan, lambda: False)
    device = plan.device
    setup = seconds_of(lambda: trainer.advance(0.0), device)
    if flops is None:
        flops = count_step_flops(trainer)
    for _ in range(WARM_UP):
        trainer.advance(0.0)
    tokens: list[Tensor] = []
    synchronize(device)
    start = time.perf_counter()
    while time.perf_counter() - start < seconds and (metrics := trainer.advance(0.0)) is not None:
        tokens.append(metrics.tokens)
    synchronize(device)
    elapsed = time.perf_counter() - start
    total = float(torch.stack(tokens).sum()) if tokens else 0.0
    return Speed(total / elapsed, len(tokens) / elapsed, flops, setup)


def row(
    data: str, model: str, compiling: bool, seconds: float, settings: list[str], peaks: dict[Any, float]
) -> str:
    plan = make_plan(data, model, "no", settings)
    if plan.precision not in peaks:
        peaks[plan.precision] = peak(plan.precision, plan.device)
    peak_flops = peaks[plan.precision]
    eager = measure(plan, seconds)
    cells = [model, f"{plan.model.n_parameters():,}", str(plan.precision).removeprefix("torch.")]
    cells += [f"{plan.train.data.batch_tokens:,}", *eager.cells(peak_flops)]
    if compiling and not isinstance(plan.model, CountModel):
        auto = make_plan(data, model, "auto", settings)
        fast_plan = auto if auto.native else make_plan(data, model, "yes", settings)
        faster = measure(fast_plan, seconds, eager.flops)
        cells += [*faster.cells(peak_flops), f"{faster.setup:.0f}"]
    else:
        cells += ["–"] * 4
    return f"| {' | '.join(cells)} |"


def main(
    data: str = typer.Argument("shakespeare", help="A data set or a text file."),
    models: str = typer.Option("", help="Models, separated by commas (default: all)."),
    seconds: float = typer.Option(5.0, help="Seconds of training per measurement."),
    compiling: bool = typer.Option(
        True, "--compile/--no-compile", help="Also measure native C or compiled steps."
    ),
    settings: list[str] = typer.Option([], "--set", help="A setting, KEY=VALUE; repeatable."),
) -> None:
    """Print the table."""
    selected = models.split(",") if models else [n for n in MODELS if MODELS.get(n).is_trainable]
    peaks: dict[Any, float] = {}
    heads = ["model", "parameters", "dtype", "batch tokens", "tokens/s", "GFLOP/s", "of peak"]
    heads += ["C or compiled: tokens/s", "GFLOP/s", "of peak", "first step, s"]
    print(f"| {' | '.join(heads)} |")
    print("|---" * len(heads) + "|", flush=True)
    for model in selected:
        print(row(data, model, compiling, seconds, settings, peaks), flush=True)
    for dtype, peak_flops in peaks.items():
        print(f"\npeak, {str(dtype).removeprefix('torch.')}: {peak_flops / 1e9:,.0f} GFLOP/s", flush=True)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")


if __name__ == "__main__":
    typer.run(main)
