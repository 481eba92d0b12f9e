"""Where a training step's time goes: matrix products, element-wise work, the optimizer, the rest.

    python benchmarks/profile_step.py shakespeare --model transformer
    python benchmarks/profile_step.py shakespeare --model lstm --compile --trace step.json

Times are torch.profiler's own times of operations, of the device where it has any. The rest is what no
operation accounts for: batches, Python, waiting.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import typer
from torch.profiler import ProfilerActivity, profile, record_function

from makemore.training.assembly import make_trainer
from makemore.training.observers import NullObserver
from makemore.training.plan import Plan
from makemore.training.planning import prepare
from makemore.training.request import TrainRequest
from makemore.training.trainer import Trainer

OPTIMIZER = "optimizer step"
PRODUCTS = ("mm", "bmm", "linear", "conv", "attention", "rnn", "gemm")
"""Parts of the names of operations and kernels that are matrix products."""
WARM_UP = 5


def labelled(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """The same call, seen by the profiler under a name."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with record_function(name):
            return call(*args, **kwargs)

    return wrapped


def is_product(name: str) -> bool:
    return any(part in name.lower() for part in PRODUCTS)


def within(event: Any, name: str) -> bool:
    """Whether an event is part of another of that name."""
    while event is not None:
        if event.name == name:
            return True
        event = event.cpu_parent
    return False


def group_of(event: Any) -> str:
    kind = "products" if is_product(event.name) else "element-wise and copies"
    if within(event, OPTIMIZER):
        return f"optimizer: {kind}"
    return "matrix products" if kind == "products" else kind


def own_time(event: Any, on_device: bool) -> float:
    """Microseconds that are the event's alone."""
    return event.self_device_time_total if on_device else event.self_cpu_time_total


def grouped(events: Iterable[Any], on_device: bool) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds by group, and by operation."""
    groups: dict[str, float] = defaultdict(float)
    names: dict[str, float] = defaultdict(float)
    for event in events:
        # What isn't an operation (the profiler's own marks, Python between operations) is the rest.
        if event.name == OPTIMIZER or event.name.startswith(
            ("ProfilerStep", "autograd::engine", "Optimizer.")
        ):
            continue
        spent = own_time(event, on_device) / 1e6
        groups[group_of(event)] += spent
        names[event.name] += spent
    return groups, names


def planned(data: str, model: str, compiled: bool, settings: list[str]) -> Plan:
    train = {"max_time": 90.0, "compile": "yes" if compiled else "no"}
    with tempfile.TemporaryDirectory() as folder:
        return prepare(
            TrainRequest(data, model, out=Path(folder), train=train, settings=tuple(settings)), NullObserver()
        )


def profiled(trainer: Trainer, steps: int, device: torch.device) -> tuple[profile, float]:
    """Some steps under the profiler, and the seconds they took."""
    for _ in range(WARM_UP):
        trainer.advance(0.0)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as seen:
        begun = time.perf_counter()
        for _ in range(steps):
            trainer.advance(0.0)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        passed = time.perf_counter() - begun
    return seen, passed


def main(
    data: str = typer.Argument("shakespeare", help="A data set or a text."),
    model: str = typer.Option("transformer", help="The rung."),
    steps: int = typer.Option(20, help="Steps to profile."),
    compiled: bool = typer.Option(False, "--compile", help="Of the compiled step."),
    settings: list[str] = typer.Option([], "--set", help="A setting; repeatable."),
    top: int = typer.Option(12, help="Operations listed apart."),
    trace: Path | None = typer.Option(None, help="Write a trace for chrome://tracing here."),
) -> None:
    """Print two tables: groups, and the longest operations."""
    torch._inductor.config.cpp.enable_kernel_profile = compiled
    plan = planned(data, model, compiled, settings)
    trainer = make_trainer(plan, lambda: False)
    optimizers = getattr(trainer.learner, "optimizers", None)
    if optimizers is None:
        raise typer.BadParameter(f"{model} has no gradients to profile")
    optimizers.step = labelled(OPTIMIZER, optimizers.step)
    optimizers.clip = labelled(OPTIMIZER, optimizers.clip)
    seen, passed = profiled(trainer, steps, plan.device)
    groups, names = grouped(seen.events(), plan.device.type == "cuda")
    groups["rest"] = max(0.0, passed - sum(groups.values()))
    print(f"{model}, {plan.train.batch_tokens:,} tokens a step, {plan.precision}, ", end="")
    print(
        f"{'compiled' if trainer.learner.compiled else 'eager'}, {torch.get_num_threads()} threads, ", end=""
    )
    print(f"torch {torch.__version__}\n\n| | ms a step | share |\n|---|---|---|")
    for name, spent in sorted(groups.items(), key=lambda pair: -pair[1]):
        print(f"| {name} | {spent / steps * 1e3:.2f} | {spent / passed:.1%} |")
    print(f"| all | {passed / steps * 1e3:.2f} | 100 % |\n\n| operation | ms a step | share |\n|---|---|---|")
    for name, spent in sorted(names.items(), key=lambda pair: -pair[1])[:top]:
        print(f"| `{name[:70]}` | {spent / steps * 1e3:.2f} | {spent / passed:.1%} |")
    if trace:
        seen.export_chrome_trace(str(trace))


if __name__ == "__main__":
    typer.run(main)
