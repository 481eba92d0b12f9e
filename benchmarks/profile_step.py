"""Profile a training step: matrix products, element-wise operations, the optimizer and the rest.

    python benchmarks/profile_step.py shakespeare --model transformer
    python benchmarks/profile_step.py shakespeare --model lstm --compile --trace step.json

Times are torch.profiler's self times of operations, on the GPU if there is one. The rest is the time outside
operations: loading batches, Python, waiting.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import typer
from throughput import make_plan
from torch.profiler import ProfilerActivity, profile, record_function

from makemore.training.assembly import make_trainer
from makemore.training.trainer import Trainer

OPTIMIZER = "optimizer step"
PRODUCTS = ("mm", "bmm", "linear", "conv", "attention", "rnn", "gemm")
"""Substrings in the names of operations and kernels that compute matrix products."""
WARM_UP = 5


def with_profiler_range(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function in a profiler range of this name."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with record_function(name):
            return function(*args, **kwargs)

    return wrapped


def is_product(name: str) -> bool:
    return any(part in name.lower() for part in PRODUCTS)


def is_within(event: Any, name: str) -> bool:
    """Whether an event or one of its parents has this name."""
    while event is not None:
        if event.name == name:
            return True
        event = event.cpu_parent
    return False


def group_of(event: Any) -> str:
    kind = "products" if is_product(event.name) else "element-wise and copies"
    if is_within(event, OPTIMIZER):
        return f"optimizer: {kind}"
    return "matrix products" if kind == "products" else kind


def self_time(event: Any, on_device: bool) -> float:
    """Self time in microseconds, excluding child events."""
    return event.self_device_time_total if on_device else event.self_cpu_time_total


def sum_times(events: Iterable[Any], on_device: bool) -> tuple[dict[str, float], dict[str, float]]:
    """Sum seconds by group and by operation."""
    groups: dict[str, float] = defaultdict(float)
    names: dict[str, float] = defaultdict(float)
    for event in events:
        # Profiler marks and Python between operations count as the rest.
        if event.name == OPTIMIZER or event.name.startswith(
            ("ProfilerStep", "autograd::engine", "Optimizer.")
        ):
            continue
        seconds = self_time(event, on_device) / 1e6
        groups[group_of(event)] += seconds
        names[event.name] += seconds
    return groups, names


def profile_steps(trainer: Trainer, steps: int, device: torch.device) -> tuple[profile, float]:
    """Profile some steps; also return their wall time in seconds."""
    for _ in range(WARM_UP):
        trainer.advance(0.0)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as profiler:
        start = time.perf_counter()
        for _ in range(steps):
            trainer.advance(0.0)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        total = time.perf_counter() - start
    return profiler, total


def main(
    data: str = typer.Argument("shakespeare", help="A data set or a text file."),
    model: str = typer.Option("transformer", help="The model."),
    steps: int = typer.Option(20, help="Number of steps to profile."),
    compiled: bool = typer.Option(False, "--compile", help="Profile the compiled step."),
    settings: list[str] = typer.Option([], "--set", help="A setting, KEY=VALUE; repeatable."),
    top: int = typer.Option(12, help="Number of operations to list."),
    trace: Path | None = typer.Option(None, help="Also write a trace for chrome://tracing to this file."),
) -> None:
    """Print two tables: groups, and the longest operations."""
    torch._inductor.config.cpp.enable_kernel_profile = compiled
    plan = make_plan(data, model, "yes" if compiled else "no", settings)
    trainer = make_trainer(plan, lambda: False)
    optimizers = getattr(trainer.learner, "optimizers", None)
    if optimizers is None:
        raise typer.BadParameter(f"{model} has no gradients to profile")
    optimizers.step = with_profiler_range(OPTIMIZER, optimizers.step)
    optimizers.clip = with_profiler_range(OPTIMIZER, optimizers.clip)
    profiler, total = profile_steps(trainer, steps, plan.device)
    groups, names = sum_times(profiler.events(), plan.device.type == "cuda")
    groups["rest"] = max(0.0, total - sum(groups.values()))
    print(f"{model}, {plan.train.data.batch_tokens:,} tokens per step, {plan.precision}, ", end="")
    print(
        f"{'compiled' if trainer.learner.compiled else 'eager'}, {torch.get_num_threads()} threads, ", end=""
    )
    print(f"torch {torch.__version__}\n\n| | ms/step | share |\n|---|---|---|")
    for name, seconds in sorted(groups.items(), key=lambda pair: -pair[1]):
        print(f"| {name} | {seconds / steps * 1e3:.2f} | {seconds / total:.1%} |")
    print(f"| all | {total / steps * 1e3:.2f} | 100 % |\n\n| operation | ms/step | share |\n|---|---|---|")
    for name, seconds in sorted(names.items(), key=lambda pair: -pair[1])[:top]:
        print(f"| `{name[:70]}` | {seconds / steps * 1e3:.2f} | {seconds / total:.1%} |")
    if trace:
        profiler.export_chrome_trace(str(trace))


if __name__ == "__main__":
    typer.run(main)
