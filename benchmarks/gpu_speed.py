"""Speeds of one device: matrix products, memory, training steps and sampling."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sampling
import torch
from sampling import VOCAB

from makemore.models.transformer import Transformer, TransformerConfig
from makemore.settings import TrainConfig
from makemore.training.learners import make_learner
from makemore.types import Batch


def wait(device: str) -> None:
    """Wait until the device has done its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_per_call(call: Callable[[], object], device: str, repeats: int) -> float:
    """Mean seconds of a call, after three to warm up."""
    for _ in range(3):
        call()
    wait(device)
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    wait(device)
    return (time.perf_counter() - started) / repeats


def measure_peaks(device: str, size: int) -> dict[str, float]:
    """TFLOP/s of a square bf16 matrix product and TB/s of a copy, reading and writing counted."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = seconds_per_call(lambda: a @ b, device, 20)
    source = torch.randn(size * size * 4, device=device)
    target = torch.empty_like(source)
    copy = seconds_per_call(lambda: target.copy_(source), device, 20)
    return {
        "matmul TFLOP/s": round(2 * size**3 / product / 1e12, 1),
        "memory TB/s": round(2 * source.nbytes / copy / 1e12, 3),
    }


def flops_per_token(model: Transformer) -> float:
    """Of a forward and backward pass, attention by its causal half."""
    config, weights = model.config, dict(model.named_parameters())
    matrices = sum(weights[name].numel() for name in model.muon_parameters()) + weights["head.weight"].numel()
    return 6.0 * matrices + 6.0 * config.n_layer * config.block_size * config.n_embd


def training_speed(
    config: TransformerConfig, device: str, batch_tokens: int, compiled: bool, graph: bool
) -> dict[str, Any]:
    """Speed of training steps on random tokens, and the kernels that take the most time."""
    torch.manual_seed(0)
    model = Transformer(config, VOCAB, 0).to(device)
    model.one_document_per_row = True
    settings = TrainConfig(steps=1000, batch_tokens=batch_tokens, optimizer="muon", cuda_graph=graph)
    precision = torch.bfloat16 if device == "cuda" else torch.float32
    learner = make_learner(model, settings, precision, compiled)
    tokens = torch.randint(1, VOCAB, (batch_tokens // config.block_size, config.block_size + 1))
    batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    started = time.perf_counter()
    learner.step([batch], 0, 0.0)
    wait(device)
    first = time.perf_counter() - started
    seconds = seconds_per_call(lambda: learner.step([batch], 1, 0.1), device, 30 if device == "cuda" else 2)
    return {
        "parameters": model.n_parameters(),
        "ms/step": round(seconds * 1e3, 3),
        "tokens/s": round(batch_tokens / seconds),
        "TFLOP/s": round(batch_tokens * flops_per_token(model) / seconds / 1e12, 2),
        "first step s": round(first, 2),
        "note": learner.note,
        "ms by kernel": kernel_times(lambda: learner.step([batch], 1, 0.1)) if device == "cuda" else {},
    }


def kernel_times(step: Callable[[], object], repeats: int = 5, most: int = 15) -> dict[str, float]:
    """Milliseconds per step of the kernels that take the most, and of all."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(repeats):
            step()
        wait("cuda")
    times = {
        event.key[:90]: event.self_device_time_total / 1e3 / repeats for event in profiler.key_averages()
    }
    top = sorted(times, key=lambda key: -times[key])[:most]
    return {"all": round(sum(times.values()), 3), **{key: round(times[key], 3) for key in top}}


def sampling_speed(
    config: TransformerConfig, device: str, n_by_rows: dict[int, int], nanogpt: Path | None
) -> dict[str, int]:
    """Tokens per second by number of rows: on the CPU, on the device, and nanoGPT's on the device."""
    sizes = {name: getattr(config, name) for name in ("block_size", "n_layer", "n_head", "n_embd")}
    model = sampling.build("transformer", sizes, "")
    results: dict[str, int] = {}
    for rows, n in n_by_rows.items():
        for place in dict.fromkeys(["cpu", device]):
            results[f"{place}, batch {rows}"] = round(sampling.speed(model.to(place), rows, n))
        if nanogpt is not None:
            module = sampling.nanogpt_module(nanogpt)
            rate = sampling.nanogpt_speed(module, sizes, rows, min(n, 32), device)
            results[f"nanoGPT, batch {rows}"] = round(rate)
    return results
