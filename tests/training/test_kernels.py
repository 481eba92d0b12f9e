"""The transformer's gradients in C against autograd in float64, and against themselves."""

from __future__ import annotations

import platform
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from makemore.models.transformer import Transformer, TransformerConfig
from makemore.settings import TrainConfig
from makemore.training.kernels import gradient_kernel
from makemore.training.kernels.transformer import LARGEST_VOCABULARY, LIBRARY, TransformerKernel
from makemore.training.learners import make_learner
from makemore.training.learners.autograd import AutogradLearner
from makemore.training.learners.manual import ManualLearner
from makemore.types import IGNORE_INDEX, Batch

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")
BOUNDARY = 0
SHAPES = {
    "no convolution": (2, 32, 20, {"n_embd": 32, "n_head": 2, "n_layer": 1, "conv": 1}),
    "whole panels": (3, 64, 40, {"n_embd": 64, "n_head": 4, "n_layer": 2}),
    "odd lengths": (3, 77, 65, {"n_embd": 96, "n_head": 4, "n_layer": 2}),
    "wide heads": (1, 50, 27, {"n_embd": 128, "n_head": 2, "n_layer": 3, "conv": 3}),
    "one token": (4, 1, 5, {"n_embd": 32, "n_head": 1, "n_layer": 1}),
}

DIFFERED = ["embedding.weight", "blocks.0.attention.qkv.weight", "blocks.1.convs.0.weight"]


def made(length: int, vocab: int, **settings: Any) -> Transformer:
    """Its zeros have become numbers, as in the middle of training."""
    torch.manual_seed(1)
    model = Transformer(TransformerConfig(block_size=length, **settings), vocab, BOUNDARY)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.train()


def batch(rows: int, length: int, vocab: int, documents: bool = True) -> Batch:
    """Some targets don't count; boundaries begin documents in the middle of rows."""
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randint(1, vocab, (rows, length), generator=generator)
    targets = torch.randint(0, vocab, (rows, length), generator=generator)
    if documents:
        inputs[torch.rand(rows, length, generator=generator) < 0.15] = BOUNDARY
        targets[torch.rand(rows, length, generator=generator) < 0.2] = IGNORE_INDEX
    targets[0, 0] = 1
    return Batch(inputs, targets)


def by_autograd(model: Transformer, given: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    twin = Transformer(model.config, model.vocab_size, BOUNDARY).double()
    twin.load_state_dict(model.state_dict())
    twin.one_document_per_row = model.one_document_per_row
    twin.train(model.training)
    logits, _ = twin(given.inputs_BT)
    loss = F.cross_entropy(logits.flatten(0, 1), given.targets_BT.flatten(), ignore_index=IGNORE_INDEX)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}


def in_c(model: Transformer, precision: torch.dtype = torch.float32) -> TransformerKernel:
    native = gradient_kernel(model, precision)
    assert isinstance(native, TransformerKernel)
    return native


@pytest.mark.parametrize("documents", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_as_autograd_in_float64(shape: str, documents: bool) -> None:
    rows, length, vocab, settings = SHAPES[shape]
    model = made(length, vocab, **settings)
    model.one_document_per_row = not documents
    given = batch(rows, length, vocab, documents)
    loss, expected = by_autograd(model, given)
    for precision, close in ((torch.float32, 1e-5), (torch.bfloat16, 0.03)):
        found, grads = in_c(model, precision).loss_and_grads(*given[:2])
        assert abs(found.item() - loss.item()) < close * loss.item()
        nats = in_c(model, precision).nats(*given[:2])
        assert nats == pytest.approx(found.item() * (given.targets_BT >= 0).sum().item(), rel=1e-6)
        assert grads.keys() == expected.keys()
        for name, grad in expected.items():
            error = (grads[name] - grad).norm() / grad.norm().clamp(min=1e-12)
            assert error < close, f"{name} at {precision}: {error:.2e}"


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="of another processor")
@pytest.mark.parametrize("flag", ["-mno-avx512bf16", "-mno-avx512f", "-mno-avx"])
def test_on_lesser_processors(flag: str) -> None:
    rows, length, vocab, settings = SHAPES["odd lengths"]
    model, given = made(length, vocab, **settings), batch(rows, length, vocab)
    code = LIBRARY.load(flag)
    assert code is not None
    loss, expected = by_autograd(model, given)
    found, grads = TransformerKernel(model, code).loss_and_grads(*given[:2])
    assert found.item() == pytest.approx(loss.item(), rel=1e-5)
    for name, grad in expected.items():
        assert (grads[name] - grad).norm() < 1e-5 * grad.norm()


def test_what_memory_held_before_is_never_read() -> None:
    model = made(50, 27, n_embd=64, n_layer=2)
    given, results = batch(3, 50, 27), []
    for rest in (0, 255):
        native = in_c(model)
        native.loss_and_grads(*given[:2])
        for tensor in (native.memory_PM, native.packed):
            tensor.fill_(rest)
        loss, grads = native.loss_and_grads(*given[:2])
        results.append([loss.clone(), *(grad.clone() for grad in grads.values())])
    for zeros, nans in zip(*results, strict=True):
        assert torch.equal(zeros, nans)


def test_threads_share_the_rows() -> None:
    model, given = made(40, 27, n_embd=64, n_layer=2, dropout=0.3), batch(5, 40, 27)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            torch.manual_seed(3)
            results.append(in_c(model).loss_and_grads(*given[:2]))
    finally:
        torch.set_num_threads(threads)
    for loss, grads in results[1:]:
        torch.testing.assert_close(loss, results[0][0])
        for name, grad in grads.items():
            torch.testing.assert_close(grad, results[0][1][name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "name", ["embedding.weight", "blocks.0.attention.qkv.weight", "blocks.1.convs.0.weight"]
)
def test_gradient_with_dropout_by_finite_differences(name: str) -> None:
    model, given = made(40, 27, n_embd=32, n_head=2, n_layer=2, dropout=0.2), batch(4, 40, 27)
    native = in_c(model)

    def loss(seed: int = 5) -> float:
        torch.manual_seed(seed)
        return native.loss_and_grads(*given[:2])[0].item()

    torch.manual_seed(5)
    slope = native.loss_and_grads(*given[:2])[1][name].clone()
    weight = model.get_parameter(name)
    direction, before = slope / slope.norm(), weight.detach().clone()
    losses = []
    for sign in (1, -1):
        weight.data.copy_(before + sign * 1e-2 * direction)
        losses.append(loss())
    weight.data.copy_(before)
    assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(slope.norm().item(), rel=0.02)
    assert loss() == loss()
    assert loss() != loss(6)
    model.eval()
    assert loss() == pytest.approx(by_autograd(model, given)[0].item(), rel=1e-5)


def test_dropout_drops_its_share() -> None:
    """Of the embedding, seen in its gradient: a token's is zero where its element was dropped."""
    model = made(32, 64, n_embd=512, n_head=1, n_layer=1, dropout=0.25)
    inputs = torch.arange(1, 33)[None]  # each once
    _, grads = in_c(model).loss_and_grads(inputs, inputs)
    # What the norm's gradient takes from the others is small, and everywhere.
    middle = grads["embedding.weight"][1:33]
    dropped = (middle.abs() < 0.05 * middle.abs().mean()).float().mean().item()
    assert 0.2 < dropped < 0.4


def test_no_targets_no_loss() -> None:
    model = made(32, 27, n_embd=32, n_head=1, n_layer=1)
    loss, grads = in_c(model).loss_and_grads(torch.ones(2, 32).long(), torch.full((2, 32), IGNORE_INDEX))
    assert loss == 0
    assert all(not grad.any() for grad in grads.values())


def test_training_goes_as_by_autograd() -> None:
    given = [batch(4, 32, 27) for _ in range(12)]
    config = TrainConfig(steps=12, optimizer="muon", lr=3e-3)
    curves = []
    for native, kind in ((True, ManualLearner), (False, AutogradLearner)):
        model = made(32, 27, n_embd=32, n_head=2)
        in_c = gradient_kernel(model, torch.float32) if native else None
        learner = make_learner(model, config, torch.float32, False, native=in_c)
        assert type(learner) is kind
        curves.append([learner.step([part], i, i / 12).loss for i, part in enumerate(given)])
    torch.testing.assert_close(torch.stack(curves[0]), torch.stack(curves[1]), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("vocab", "settings"),
    [
        (27, {"style": "gpt2"}),
        (27, {"n_embd": 80, "n_head": 2}),
        (27, {"n_embd": 32, "n_head": 8}),
        (LARGEST_VOCABULARY + 1, {}),
        (27, {"n_embd": 1024, "n_layer": 2}),
    ],
)
def test_what_is_not_for_c(vocab: int, settings: dict[str, Any]) -> None:
    model = made(32, vocab, **{"n_embd": 32, "n_head": 2, "n_layer": 1, **settings})
    assert gradient_kernel(model, torch.float32) is None


def test_without_a_compiler(no_compiler: None) -> None:
    assert gradient_kernel(made(32, 27, n_embd=32, n_head=2), torch.float32) is None
