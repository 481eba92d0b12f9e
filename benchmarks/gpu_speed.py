"""Speeds of one device: matrix products, memory, training steps and sampling."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from makemore.models.transformer import Transformer, TransformerConfig
from makemore.sampling.generate import generate
from makemore.sampling.logits import SampleParams
from makemore.settings import TrainConfig
from makemore.training.learners import make_learner
from makemore.types import Batch

VOCAB = 66


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
    config: TransformerConfig, device: str, batches: tuple[int, ...], nanogpt: Path | None, seconds: float
) -> dict[str, Any]:
    """Tokens per second by batch size: on the device, on the CPU, and nanoGPT's on the device."""
    torch.manual_seed(0)
    model = Transformer(config, VOCAB, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.08)
    results: dict[str, Any] = {}
    for batch in batches:
        for place in dict.fromkeys(["cpu", device]):
            model.to(place)
            results[f"{place}, batch {batch}"] = round(_generate(model, batch, seconds))
        if nanogpt is not None:
            results[f"nanoGPT, batch {batch}"] = round(
                _nanogpt_generate(nanogpt, config, device, batch, seconds)
            )
    return results


def _generate(model: Transformer, batch: int, seconds: float) -> float:
    """Tokens per second, after a hundred steps to warm up."""
    prompt = np.ones((batch, 1), np.int64)
    n, started = 0, 0.0
    for _ in generate(model, prompt, 100_000, SampleParams(), seed=1):
        n += 1
        if n == 100:
            started = time.perf_counter()
        if n > 100 and time.perf_counter() - started > seconds:
            break
    return (n - 100) * batch / (time.perf_counter() - started)


def _nanogpt_generate(
    checkout: Path, config: TransformerConfig, device: str, batch: int, seconds: float
) -> float:
    spec = importlib.util.spec_from_file_location("nanogpt_model", checkout / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sizes = {"n_layer": config.n_layer, "n_head": config.n_head, "n_embd": config.n_embd}
    settings = module.GPTConfig(
        block_size=config.block_size, vocab_size=VOCAB, dropout=0.0, bias=False, **sizes
    )
    model = module.GPT(settings).to(device).eval()
    tokens = torch.ones((batch, 1), dtype=torch.int64, device=device)
    # As its sample.py: bf16 autocast, contexts that grow to the block size.
    with torch.no_grad(), torch.autocast(device, torch.bfloat16):
        tokens = model.generate(tokens, 16)
        wait(device)
        started, n = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            tokens = model.generate(tokens[:, -config.block_size :], 16)
            wait(device)
            n += 16
    return n * batch / (time.perf_counter() - started)
