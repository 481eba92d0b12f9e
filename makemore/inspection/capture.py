"""Record outputs of a model's nonlinearities and inputs of its layers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

NONLINEARITIES: dict[Callable[..., Any], str] = {
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
    """(B, T, H)."""


class _ActivationRecorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.layers: list[str] = []
        self.outputs: dict[tuple[int, str], tuple[Any, Activation]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        kind = NONLINEARITIES.get(func)
        if kind is not None:
            layer = self.layers[-1] if self.layers else ""
            # Keyed by input (kept alive), because squared nonlinearities are computed by two equal calls.
            self.outputs.setdefault((id(args[0]), kind), (args[0], Activation(layer, kind, out.detach())))
        return out


@contextlib.contextmanager
def record_activations(model: nn.Module) -> Iterator[Callable[[], list[Activation]]]:
    """Record the model's calls in the block; yields a function that returns the activations, in order."""
    recorder = _ActivationRecorder()

    def enter(name: str) -> Callable[..., None]:
        return lambda module, args: recorder.layers.append(name)

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        recorder.layers.pop()

    with contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.enter_context(module.register_forward_pre_hook(enter(name)))
            hooks.enter_context(module.register_forward_hook(leave, always_call=True))
        with recorder:
            yield lambda: [activation for _, activation in recorder.outputs.values()]


@torch.no_grad()
def record_inputs(model: nn.Module, kind: type[nn.Module], run: Callable[[], Any]) -> list[tuple[Any, ...]]:
    """(layer, *arguments) of every call of a layer of type ``kind`` while ``run`` runs."""
    calls: list[tuple[Any, ...]] = []

    def record(module: nn.Module, args: Any) -> None:
        calls.append((module, *args))

    with contextlib.ExitStack() as hooks:
        for layer in (module for module in model.modules() if isinstance(module, kind)):
            hooks.enter_context(layer.register_forward_pre_hook(record))
        run()
    return calls
