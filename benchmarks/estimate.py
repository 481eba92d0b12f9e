"""Estimate the memory and time of training a transformer on GPUs, by arithmetic rather than measurement.

    python benchmarks/estimate.py

Parameters and activations saved for the backward pass are counted on real models; the hardware numbers below
are assumptions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import typer
from torch import Tensor
from torch.nn import functional as F

from makemore.models.layers import attention
from makemore.models.transformer import Transformer, TransformerConfig

PEAK = 989e12
"""Dense bf16 FLOP/s of an H100 or H200 SXM, from the data sheet."""
UTILIZATION = 0.4
"""Assumed fraction of the peak reached in training."""
MIN_STEP = 3e-3
"""Minimum seconds per step, however small the model: kernel launch overhead."""
INTRA_NODE, INTER_NODE = 300e9, 40e9
"""All-reduce bandwidth in bytes/s sent per GPU: over NVLink within a node of 8 GPUs, and over one 400 Gb/s
network card per GPU between nodes."""
GPUS = (1, 8, 16)


@dataclass(frozen=True)
class Case:
    """``tokens`` per run, per step (``batch``) and per micro-batch of a GPU (``micro_batch``)."""

    label: str
    config: TransformerConfig
    vocab_size: int
    batch: int
    micro_batch: int
    tokens: float


def _transformer(block_size: int, n_layer: int, n_embd: int) -> TransformerConfig:
    return TransformerConfig(block_size=block_size, n_layer=n_layer, n_head=n_layer, n_embd=n_embd)


CASES = (
    Case("1M", TransformerConfig(), 66, 16_384, 16_384, 100e6),
    Case(
        "10M", TransformerConfig(block_size=256, n_layer=6, n_head=6, n_embd=384), 66, 65_536, 16_384, 100e6
    ),
    Case(
        "124M",
        TransformerConfig(block_size=1024, n_layer=12, n_head=12, n_embd=768),
        50_258,
        524_288,
        16_384,
        10e9,
    ),
)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    """Fused causal attention, as used on GPUs."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def saved_bytes(config: TransformerConfig, vocab_size: int) -> float:
    """Bytes per token that autograd saves for the backward pass, in bf16."""
    model = Transformer(config, vocab_size, 0)
    model.one_document_per_row = True
    parameter_ptrs = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameter_ptrs:
            storages[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # keep it alive so its address isn't reused
        return tensor

    tokens = torch.randint(1, vocab_size, (1, config.block_size))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16):
            logits, _ = model(tokens)
        F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())
    return sum(storages.values()) / config.block_size


@dataclass(frozen=True)
class Needs:
    """Memory and compute of a model, independent of the hardware."""

    parameters: int
    hidden: int
    """Parameters of matrices that Muon can train."""
    flops: float
    """FLOPs per token, forward and backward."""
    saved: float
    """Saved activations, in bytes per token."""

    @staticmethod
    def of(case: Case) -> Needs:
        config = case.config
        with torch.device("meta"):
            model = Transformer(config, case.vocab_size, 0)
        parameters = dict(model.named_parameters())
        hidden = sum(parameters[name].numel() for name in model.muon_parameters())
        attention = 6 * config.n_layer * config.block_size * config.n_embd
        flops = 6 * (hidden + parameters["head.weight"].numel()) + attention
        # Models of one and two layers separate a layer's activations from the rest.
        shallow: dict[int, Any] = {}
        for n_layer in (1, 2):
            sizes = config.replace(n_layer=n_layer)
            shallow[n_layer] = saved_bytes(sizes, case.vocab_size)
        layer = shallow[2] - shallow[1]
        saved = shallow[1] + (config.n_layer - 1) * layer
        return Needs(model.n_parameters(), hidden, flops, saved)

    def fixed(self, muon: bool, processes: int, sharded: bool) -> float:
        """Bytes of weights, gradients and optimizer states per GPU."""
        states = 8.0 * self.parameters - (4.0 * self.hidden if muon else 0.0)
        weights_gradients_best = 12.0 * self.parameters
        shardable = weights_gradients_best + states
        bf16_copies = 2.0 * self.parameters
        return shardable / processes if sharded else shardable + bf16_copies


def communication_cost(parameters: int, processes: int, sharded: bool) -> tuple[float, float]:
    """Bytes that each GPU sends per step, and the seconds it takes."""
    passes = 3 if sharded else 2
    sent = passes * (processes - 1) / processes * 4 * parameters
    return sent, sent / (INTRA_NODE if processes <= 8 else INTER_NODE)


def row(case: Case, needs: Needs, processes: int) -> str:
    micro_batch = min(case.micro_batch, case.batch // processes)
    activations = micro_batch * needs.saved
    memory = [needs.fixed(True, processes, False), needs.fixed(False, processes, True)]
    compute = case.batch * needs.flops / (processes * PEAK * UTILIZATION)
    sent, communication = communication_cost(needs.parameters, processes, False)
    step = max(compute, MIN_STEP) + communication
    cells = [case.label, str(processes), f"{case.batch:,}"]
    cells += [f"{(fixed + activations) / 1e9:.1f}" for fixed in memory]
    cells += [
        f"{compute * 1e3:.1f}",
        f"{sent / 1e6:,.0f}",
        f"{communication * 1e3:.1f}",
        f"{case.batch / step / 1e6:,.1f}",
    ]
    hours = case.tokens / case.batch * step / 3600
    cells.append(f"{hours:.1f} h" if hours > 1 else f"{hours * 60:.1f} min")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print two tables: models, and their training by number of GPUs."""
    attention.attend = fused_attention
    needs = {case.label: Needs.of(case) for case in CASES}
    print("| model | layers x width, context | parameters | FLOPs/token | saved/token | tokens per run |")
    print("|---" * 6 + "|")
    for case in CASES:
        c, n = case.config, needs[case.label]
        shape = f"{c.n_layer} x {c.n_embd}, {c.block_size}"
        cells = [
            case.label,
            shape,
            f"{n.parameters / 1e6:.2f}M",
            f"{n.flops / 1e6:,.0f}M",
            f"{n.saved / 1e3:,.0f} kB",
        ]
        print(f"| {' | '.join(cells)} | {case.tokens / 1e6:,.0f}M |")
    heads = ["model", "GPUs", "tokens/step", "GB/GPU, Muon", "GB/GPU, --shard", "compute ms"]
    heads += ["MB sent", "communication ms", "M tokens/s", "time per run"]
    print(f"\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for case in CASES:
        for processes in GPUS:
            print(row(case, needs[case.label], processes))


if __name__ == "__main__":
    typer.run(main)
