"""Devices that aren't available: operations are recorded on torch's meta device."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchgen
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from makemore.errors import UserError
from makemore.models import MODELS
from makemore.models.base import CountModel
from makemore.runtime.device import has_mps, pick_device
from makemore.settings import CorpusStats
from makemore.training.learners import make_learner
from makemore.types import Batch

VOCAB = 11


def test_apple_gpu_that_cannot_allocate_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if not has_mps():  # no Apple GPU: the allocation fails
        assert pick_device("auto").type == "cpu"
        with pytest.raises(UserError, match="no Apple GPU"):
            pick_device("mps")
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)  # the allocation succeeds
    assert pick_device("auto").type == "mps"


class Recorder(TorchDispatchMode):
    """Records the names of the operations on a device, and of those with float64 tensors."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.ops = device, set[str]()
        self.float64_ops = set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        on_device = [t for t in tensors if t.device.type == self.device]
        name = func._schema.name.removeprefix("aten::")
        if on_device:
            overload = func._schema.overload_name
            self.ops.add(f"{name}.{overload}" if overload else name)
        if any(t.dtype == torch.float64 for t in on_device):
            self.float64_ops.add(name)
        return out


@contextlib.contextmanager
def meta(all_nonzero: bool) -> Iterator[Recorder]:
    """Record on the meta device; with ``all_nonzero``, ``nonzero`` has the largest possible result."""
    from torch.fx.experimental import _config

    with _config.patch(meta_nonzero_assume_all_nonzero=all_nonzero), Recorder("meta") as recorder:
        yield recorder


def kernel_table() -> dict[str, str]:
    """Backends of each operation in torch's table of native functions; empty means any backend."""
    path = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    table: dict[str, str] = {}
    for entry in path.read_text(encoding="utf-8").split("\n- func: ")[1:]:
        backends = re.findall(r"^    ([A-Z]\w+(?:, \w+)*): ", entry, flags=re.MULTILINE)
        same = re.search(r"structured_delegate: (\S+)", entry)
        table[entry.partition("(")[0]] = f"={same[1]}" if same else ", ".join(backends)
    return table


def runs_on(backend: str, name: str, table: dict[str, str]) -> bool:
    backends = table[name]
    if backends.startswith("="):
        return runs_on(backend, backends[1:], table)
    return not backends or backend in backends or "Composite" in backends


def test_kernel_table_lists_what_mps_lacks() -> None:
    table = kernel_table()
    assert runs_on("MPS", "mm", table)
    assert not runs_on("MPS", "_linalg_eigvals", table)


GRADIENT_MODELS = [
    name for name in MODELS if MODELS.get(name).is_trainable and not issubclass(MODELS.get(name), CountModel)
]


@pytest.mark.parametrize("mode", ["lines", "text"])
@pytest.mark.parametrize("name", GRADIENT_MODELS)
def test_a_step_runs_on_mps_without_synchronizing(name: str, mode: Any) -> None:
    """The recipe's settings use no float64 and no operation without a kernel. Meta tensors have no data, so a
    step that synchronises with its device would fail."""
    documents = 1000 if mode == "lines" else 1
    kind = MODELS.get(name)
    recipe = kind.recipe(CorpusStats(mode, 100_000, VOCAB, documents, 20, "mps", steps=100))
    settings = recipe.train.replace(ema=0.9, grad_accum_steps=2)
    model = kind(recipe.model, VOCAB, 0).to("meta")
    learner = make_learner(model, settings, torch.float32, False)
    tokens = torch.randint(0, VOCAB, (4, 16))
    # The hand-written batch norm selects the valid examples, which does synchronise.
    with meta(all_nonzero=name == "batchnorm-mlp") as recorder:
        for step in range(2):
            learner.step([Batch(tokens, tokens, False), Batch(tokens, tokens, True)], step, 0.1)
        assert learner.ema is not None
        with torch.no_grad(), learner.ema.applied():
            model.eval()
            model(tokens.to("meta"))
            model(tokens.to("meta"), model.init_state(4, 16))
    assert not recorder.float64_ops
    assert len(recorder.ops) > 20
    table = kernel_table()
    assert not {name for name in recorder.ops if not runs_on("MPS", name, table)}


@pytest.mark.parametrize("name", list(MODELS))
def test_state_dict_has_no_float64(name: str) -> None:
    kind = MODELS.get(name)
    model = kind(kind.Config(), VOCAB, 0)
    assert not {name for name, tensor in model.state_dict().items() if tensor.dtype == torch.float64}
