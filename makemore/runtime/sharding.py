"""Weights, gradients and optimizer states cut over processes (FSDP2), and made whole to be saved."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from makemore.errors import UserError
from makemore.models.base import LanguageModel
from makemore.runtime import distributed as parallel
from makemore.settings import TrainConfig


def shard(model: LanguageModel, config: TrainConfig) -> None:
    """Cut a model's weights over all processes, which hold a block's whole weights only while they
    compute it (Zhao et al. 2023, "PyTorch FSDP"; Rajbhandari et al. 2020, "ZeRO").

    Raises UserError for a model without ``blocks``, and for Muon, which needs whole matrices.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.ModuleList):
        raise UserError("--shard is for the transformer; the other rungs fit in one process's memory")
    if config.optimizer == "muon":
        raise UserError("--shard: muon needs whole matrices; add --set train.optimizer=adamw")
    mesh = init_device_mesh(model.device.type, (torch.distributed.get_world_size(),))
    # Said of every block, in case someone changes its output in place; nobody does.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    for module in (*blocks, model):
        fully_shard(module, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def on_all(tensor: Tensor) -> Tensor:
    """A tensor that may be cut, put together on every process, who must all ask at the same time."""
    put_together = getattr(tensor, "full_tensor", None)
    return tensor if put_together is None else put_together()


def whole(value: Any) -> Any:
    """Nested state with every cut tensor put together on the first process's CPU; the others, who must
    ask at the same time, have nothing in its place.
    """
    if hasattr(value, "full_tensor"):
        full = value.full_tensor()
        return full.cpu() if parallel.is_main() else full.new_empty(0, device="cpu")
    if isinstance(value, dict):
        return {key: whole(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [whole(inner) for inner in value]
    return value


@torch.no_grad()
def own_parts(tensors: list[Tensor]) -> list[Tensor]:
    """What this process holds of each tensor, cut or not, as views."""
    return [t.to_local() if hasattr(t, "to_local") else t.detach() for t in tensors]


def cut_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor, if ``like`` is cut and of the same shape."""
    if not hasattr(like, "full_tensor") or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    # Every process has read the same state: nothing need be sent.
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
