"""What training a transformer would take on GPUs: bytes and FLOPs by arithmetic, not by measurement.

    python benchmarks/estimate.py

Parameters and what autograd keeps for the backward pass are counted on real models; the machine's figures
are assumptions, listed first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import typer
from torch import Tensor
from torch.nn import functional as F

from makemore.models import transformer
from makemore.models.transformer import Transformer, TransformerConfig

PEAK = 989e12
"""Dense bf16 FLOP/s of an H100 or H200 SXM, by its data sheet."""
SHARE = 0.4
"""Of the peak, in training."""
LAUNCH = 3e-3
"""Seconds a step that a GPU waits for what it is to do, however small the model."""
WITHIN, BETWEEN = 300e9, 40e9
"""Bytes a second that each GPU sends in an all-reduce: over NVLink within a machine of 8 GPUs, and over its
own 400 Gb/s network card between machines."""
GPUS = (1, 8, 16)


@dataclass(frozen=True)
class Case:
    """``tokens``: of a training run; ``batch``: of a step; ``part``: of what a GPU computes at once."""

    label: str
    config: TransformerConfig
    vocab_size: int
    batch: int
    part: int
    tokens: float


CASES = (
    Case("1M", TransformerConfig(), 66, 16_384, 16_384, 100e6),
    Case("10M", TransformerConfig(256, 6, 6, 384), 66, 65_536, 16_384, 100e6),
    Case("124M", TransformerConfig(1024, 12, 12, 768), 50_258, 524_288, 16_384, 10e9),
)


def fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    """Attention as a GPU has it."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def kept_bytes(config: TransformerConfig, vocab_size: int) -> float:
    """Bytes a token that autograd keeps for the backward pass, in bf16."""
    model = Transformer(config, vocab_size, 0)
    model.one_document_per_row = True
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}
    held: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)  # so that no address is given twice
        return tensor

    tokens = torch.randint(1, vocab_size, (1, config.block_size))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16):
            logits, _ = model(tokens)
        F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())
    return sum(seen.values()) / config.block_size


@dataclass(frozen=True)
class Needs:
    """What a model takes, whatever the machine."""

    parameters: int
    hidden: int
    """In matrices that Muon may train."""
    flops: float
    """A token, forward and backward."""
    kept: float
    """Bytes a token."""

    @staticmethod
    def of(case: Case) -> Needs:
        config = case.config
        with torch.device("meta"):
            model = Transformer(config, case.vocab_size, 0)
        named = dict(model.named_parameters())
        hidden = sum(named[name].numel() for name in model.muon_parameters())
        attention = 6 * config.n_layer * config.block_size * config.n_embd
        flops = 6 * (hidden + named["head.weight"].numel()) + attention
        # Two shallow models tell what a layer keeps, and what is kept besides.
        shallow: dict[int, Any] = {}
        for n_layer in (1, 2):
            sizes = TransformerConfig(config.block_size, n_layer, config.n_head, config.n_embd)
            shallow[n_layer] = kept_bytes(sizes, case.vocab_size)
        layer = shallow[2] - shallow[1]
        kept = shallow[1] + (config.n_layer - 1) * layer
        return Needs(model.n_parameters(), hidden, flops, kept)

    def fixed(self, muon: bool, processes: int, sharded: bool) -> float:
        """Bytes of weights, gradients and states on each GPU."""
        states = 8.0 * self.parameters - (4.0 * self.hidden if muon else 0.0)
        cut = 8.0 * self.parameters + states
        if sharded:
            return cut / processes
        message = 4.0 * self.parameters if processes > 1 else 0.0
        best, low = 4.0 * self.parameters, 2.0 * self.parameters
        return cut + message + best + low


def exchange(parameters: int, processes: int, sharded: bool) -> tuple[float, float]:
    """Bytes that each GPU sends in a step, and the seconds that takes."""
    passes = 3 if sharded else 2
    sent = passes * (processes - 1) / processes * 4 * parameters
    return sent, sent / (WITHIN if processes <= 8 else BETWEEN)


def row(case: Case, needs: Needs, processes: int) -> str:
    part = min(case.part, case.batch // processes)
    activations = part * needs.kept
    memory = [needs.fixed(True, processes, False), needs.fixed(False, processes, True)]
    work = case.batch * needs.flops / (processes * PEAK * SHARE)
    sent, sending = exchange(needs.parameters, processes, False)
    step = max(work, LAUNCH) + sending
    cells = [case.label, str(processes), f"{case.batch:,}"]
    cells += [f"{(fixed + activations) / 1e9:.1f}" for fixed in memory]
    cells += [
        f"{work * 1e3:.1f}",
        f"{sent / 1e6:,.0f}",
        f"{sending * 1e3:.1f}",
        f"{case.batch / step / 1e6:,.1f}",
    ]
    hours = case.tokens / case.batch * step / 3600
    cells.append(f"{hours:.1f} h" if hours > 1 else f"{hours * 60:.1f} min")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print two tables."""
    transformer.attend = fused
    needs = {case.label: Needs.of(case) for case in CASES}
    print("| model | layers x width, context | parameters | FLOPs a token | kept a token | tokens of a run |")
    print("|---" * 6 + "|")
    for case in CASES:
        c, n = case.config, needs[case.label]
        shape = f"{c.n_layer} x {c.n_embd}, {c.block_size}"
        cells = [
            case.label,
            shape,
            f"{n.parameters / 1e6:.2f}M",
            f"{n.flops / 1e6:,.0f}M",
            f"{n.kept / 1e3:,.0f} kB",
        ]
        print(f"| {' | '.join(cells)} | {case.tokens / 1e6:,.0f}M |")
    heads = ["model", "GPUs", "tokens a step", "GB a GPU, Muon", "GB a GPU, --shard", "ms of products"]
    heads += ["MB sent", "ms of sending", "M tokens/s", "a run"]
    print(f"\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for case in CASES:
        for processes in GPUS:
            print(row(case, needs[case.label], processes))


if __name__ == "__main__":
    typer.run(main)
