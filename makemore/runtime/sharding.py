"""Shard weights, gradients and optimizer states over ranks (FSDP2), and gather them for saving."""

from __future__ import annotations

import warnings
from typing import Any

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


def gather_full(value: Any) -> Any:
    """Gather a nested state's sharded tensors on rank 0's CPU (empty elsewhere); all ranks must call it."""
    if hasattr(value, "full_tensor"):
        gathered = value.full_tensor()
        return gathered.cpu() if distributed.is_main() else gathered.new_empty(0, device="cpu")
    if isinstance(value, dict):
        return {key: gather_full(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [gather_full(item) for item in value]
    return value


@torch.no_grad()
def local_shards(tensors: list[Tensor]) -> list[Tensor]:
    """This rank's part of each tensor, sharded or not, as views."""
    return [t.to_local() if hasattr(t, "to_local") else t.detach() for t in tensors]


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's shard of a full tensor. Returns it unchanged unless ``like`` is sharded, with its shape."""
    if not hasattr(like, "full_tensor") or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    # Every rank has loaded the same state, so nothing needs to be sent.
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
