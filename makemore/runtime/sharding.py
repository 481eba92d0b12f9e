"""Shard weights, gradients and optimizer states over ranks (FSDP2), gather them, and read saved shards."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from makemore.errors import UserError
from makemore.runtime import distributed
from makemore.settings import TrainConfig


def shard(model: nn.Module, config: TrainConfig) -> None:
    """Shard a model's weights over all ranks, which gather one block's weights at a time to compute it
    (Zhao et al. 2023, "PyTorch FSDP"; Rajbhandari et al. 2020, "ZeRO").

    Raises:
        UserError: the model has no ``blocks``, or the optimizer is Muon, which needs full matrices.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.ModuleList):
        raise UserError("--shard works with the transformer only; train other models without it")
    if config.optimizer.name == "muon":
        raise UserError("--shard: Muon needs unsharded matrices; add --set train.optimizer=adamw")
    mesh = init_device_mesh(next(model.parameters()).device.type, (torch.distributed.get_world_size(),))
    # FSDP2 warns in case a block's output is modified in place, which never happens here.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    for module in (*blocks, model):
        fully_shard(module, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor on every rank (a plain tensor is returned as it is); all ranks must call it."""
    full_tensor = getattr(tensor, "full_tensor", None)
    return tensor if full_tensor is None else full_tensor()


def gather_full(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gather sharded tensors on rank 0's CPU, one at a time (empty elsewhere); all ranks must call it.

    Tensors that aren't sharded are returned as they are.
    """
    full = {}
    for name, tensor in tensors.items():
        gathered = full_tensor(tensor)
        if gathered is not tensor:
            gathered = gathered.cpu() if distributed.is_main() else gathered.new_empty(0, device="cpu")
        full[name] = gathered
    return full


@torch.no_grad()
def local_shards(tensors: list[Tensor]) -> list[Tensor]:
    """This rank's part of each tensor, sharded or not, as views."""
    return [t.to_local() if hasattr(t, "to_local") else t.detach() for t in tensors]


class SavedShards(NamedTuple):
    """A saved tensor in pieces along its first dimension, each mapped from its file."""

    parts: list[Tensor]


def shard_like(saved: Tensor | SavedShards, like: Tensor) -> Any:
    """Copy this rank's rows of a saved tensor, as a sharded tensor.

    Returns ``saved`` unchanged if it is sharded already, or if ``like`` isn't or has another shape.
    """
    if not hasattr(like, "full_tensor") or hasattr(saved, "full_tensor"):
        return saved
    from torch.distributed.tensor import DTensor

    assert isinstance(like, DTensor)
    parts = saved.parts if isinstance(saved, SavedShards) else [saved]
    if (sum(len(part) for part in parts if part.ndim), *parts[0].shape[1:]) != like.shape:
        return saved
    # FSDP divides rows as ``torch.chunk`` does.
    local = like.to_local()
    start = min(distributed.rank() * -(-len(like) // distributed.world_size()), len(like))
    pieces = []
    for part in parts:
        pieces.append(part[max(start, 0) : max(start + len(local), 0)])
        start -= len(part)
    return DTensor.from_local(
        torch.cat(pieces).to(local.device),
        like.device_mesh,
        like.placements,
        shape=like.shape,
        stride=like.stride(),
    )
