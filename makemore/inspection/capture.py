"""What flows through a model, seen from outside: outputs of its nonlinearities, inputs of its layers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

SQUASHING: dict[Callable[..., Any], str] = {
    torch.tanh: "tanh",
    Tensor.tanh: "tanh",
    torch.sigmoid: "sigmoid",
    Tensor.sigmoid: "sigmoid",
    torch.relu: "relu",
    F.relu: "relu",
    F.gelu: "gelu",
}


class Activation(NamedTuple):
    """The output of a nonlinearity."""

    layer: str
    kind: str
    """``tanh``, ``sigmoid``, ``relu`` or ``gelu``."""
    values: Tensor
    """(B, T, H), or (N, H) of the positions that count."""


class _Watch(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.path: list[str] = []
        self.seen: dict[tuple[int, str], tuple[Any, Activation]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        kind = SQUASHING.get(func)
        if kind is not None:
            layer = self.path[-1] if self.path else ""
            # Keyed by its input, which is kept alive: some square a nonlinearity by calling it twice.
            self.seen.setdefault((id(args[0]), kind), (args[0], Activation(layer, kind, out.detach())))
        return out


@contextlib.contextmanager
def watching(model: nn.Module) -> Iterator[Callable[[], list[Activation]]]:
    """Within the block, calling the model is watched; what is yielded tells what was seen, in order."""
    watch, handles = _Watch(), []

    def enter(name: str) -> Callable[..., None]:
        return lambda module, args: watch.path.append(name)

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        watch.path.pop()

    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        with watch:
            yield lambda: [activation for _, activation in watch.seen.values()]
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def inputs_of(model: nn.Module, kind: type[nn.Module], run: Callable[[], Any]) -> list[tuple[Any, ...]]:
    """The arguments of every call of a layer of a kind while ``run`` runs."""
    found: list[tuple[Any, ...]] = []

    def note(module: nn.Module, args: Any) -> None:
        found.append((module, *args))

    handles = [m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, kind)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found
