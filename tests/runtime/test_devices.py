"""Devices that aren't at hand: what a rung would ask of one is recorded on torch's meta device."""

from __future__ import annotations

import contextlib
import dataclasses
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


def test_an_apple_gpu_without_memory_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if not has_mps():  # as here, where there is none to ask
        assert pick_device("auto").type == "cpu"
        with pytest.raises(UserError, match="no Apple GPU"):
            pick_device("mps")
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)  # one that gives what it is asked for
    assert pick_device("auto").type == "mps"


class Recorder(TorchDispatchMode):
    """Names of the operations on a device, and those that have to do with float64 there."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.names = device, set[str]()
        self.doubles = set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        there = [t for t in tensors if t.device.type == self.device]
        name = func._schema.name.removeprefix("aten::")
        if there:
            overload = func._schema.overload_name
            self.names.add(f"{name}.{overload}" if overload else name)
        if any(t.dtype == torch.float64 for t in there):
            self.doubles.add(name)
        return out


@contextlib.contextmanager
def meta(sized_by_data: bool) -> Iterator[Recorder]:
    """``sized_by_data``: what a tensor holds may decide another's size, taken to be the largest."""
    from torch.fx.experimental import _config

    with _config.patch(meta_nonzero_assume_all_nonzero=sized_by_data), Recorder("meta") as recorder:
        yield recorder


def kernels() -> dict[str, str]:
    """The backends that torch's own table of operations names for each; empty where any will do."""
    table = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    found: dict[str, str] = {}
    for entry in table.read_text(encoding="utf-8").split("\n- func: ")[1:]:
        backends = re.findall(r"^    ([A-Z]\w+(?:, \w+)*): ", entry, flags=re.MULTILINE)
        same = re.search(r"structured_delegate: (\S+)", entry)
        found[entry.partition("(")[0]] = f"={same[1]}" if same else ", ".join(backends)
    return found


def runs_on(backend: str, name: str, table: dict[str, str]) -> bool:
    backends = table[name]
    if backends.startswith("="):
        return runs_on(backend, backends[1:], table)
    return not backends or backend in backends or "Composite" in backends


def test_the_table_of_kernels_knows_what_is_missing() -> None:
    table = kernels()
    assert runs_on("MPS", "mm", table)
    assert not runs_on("MPS", "_linalg_eigvals", table)


GRADIENT_RUNGS = [
    name for name in MODELS if MODELS.get(name).is_trainable and not issubclass(MODELS.get(name), CountModel)
]


@pytest.mark.parametrize("mode", ["lines", "text"])
@pytest.mark.parametrize("name", GRADIENT_RUNGS)
def test_a_step_waits_for_no_device_and_asks_nothing_that_mps_lacks(name: str, mode: Any) -> None:
    """Neither float64 nor an operation without a kernel, under the recipe's settings; and a tensor without
    data can't be read, as a step that waits for its device would."""
    documents = 1000 if mode == "lines" else 1
    kind = MODELS.get(name)
    recipe = kind.recipe(CorpusStats(mode, 100_000, VOCAB, documents, 20, "mps", steps=100))
    settings = dataclasses.replace(recipe.train, ema=0.9, grad_accum_steps=2)
    model = kind(recipe.model, VOCAB, 0).to("meta")
    learner = make_learner(model, settings, torch.float32, False)
    tokens = torch.randint(0, VOCAB, (4, 16))
    # By hand, batch normalisation sees the examples that count and no others: this does wait.
    with meta(sized_by_data=name == "batchnorm-mlp") as seen:
        for step in range(2):
            learner.step([Batch(tokens, tokens, False), Batch(tokens, tokens, True)], step, 0.1)
        assert learner.average is not None
        with torch.no_grad(), learner.average.applied():
            model.eval()
            model(tokens.to("meta"))
            model(tokens.to("meta"), model.init_state(4, 16))
    assert not seen.doubles
    assert len(seen.names) > 20
    table = kernels()
    assert not {name for name in seen.names if not runs_on("MPS", name, table)}


@pytest.mark.parametrize("name", list(MODELS))
def test_what_a_model_keeps_fits_on_any_device(name: str) -> None:
    kind = MODELS.get(name)
    model = kind(kind.Config(), VOCAB, 0)
    assert not {name for name, tensor in model.state_dict().items() if tensor.dtype == torch.float64}
