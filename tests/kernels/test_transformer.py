"""The transformer's C gradient kernel against autograd in float64 and finite differences."""

from __future__ import annotations

import copy
import platform
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from makemore.kernels import find_kernel
from makemore.kernels.transformer import LIBRARY, MAX_VOCABULARY, TransformerKernel
from makemore.models.transformer import Transformer, TransformerConfig
from makemore.settings import TrainConfig
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


def make_model(length: int, vocab: int, **settings: Any) -> Transformer:
    """A model in training mode whose zero-initialised parameters are nonzero."""
    torch.manual_seed(1)
    model = Transformer(TransformerConfig(block_size=length, **settings), vocab, BOUNDARY)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.train()


def make_batch(rows: int, length: int, vocab: int, documents: bool = True) -> Batch:
    """A random batch; ``documents`` adds ignored targets and document boundaries inside rows."""
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randint(1, vocab, (rows, length), generator=generator)
    targets = torch.randint(0, vocab, (rows, length), generator=generator)
    if documents:
        inputs[torch.rand(rows, length, generator=generator) < 0.15] = BOUNDARY
        targets[torch.rand(rows, length, generator=generator) < 0.2] = IGNORE_INDEX
    targets[0, 0] = 1
    return Batch(inputs, targets)


def autograd_loss_and_grads(model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    twin = Transformer(model.config, model.vocab_size, BOUNDARY).double()
    twin.load_state_dict(model.state_dict())
    twin.one_document_per_row = model.one_document_per_row
    twin.set_document_ends(model.document_ends)
    twin.train(model.training)
    logits, _ = twin(batch.inputs_BT)
    loss = F.cross_entropy(logits.flatten(0, 1), batch.targets_BT.flatten(), ignore_index=IGNORE_INDEX)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}


def kernel_of(model: Transformer, precision: torch.dtype = torch.float32) -> TransformerKernel:
    kernel = find_kernel(model, precision)
    assert isinstance(kernel, TransformerKernel)
    return kernel


@pytest.mark.parametrize("documents", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_matches_autograd_in_float64(shape: str, documents: bool) -> None:
    rows, length, vocab, settings = SHAPES[shape]
    model = make_model(length, vocab, **settings)
    model.one_document_per_row = not documents
    batch = make_batch(rows, length, vocab, documents)
    loss, expected = autograd_loss_and_grads(model, batch)
    for precision, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.03)):
        kernel_loss, grads = kernel_of(model, precision).loss_and_grads(*batch[:2])
        assert abs(kernel_loss.item() - loss.item()) < tolerance * loss.item()
        nats = kernel_of(model, precision).nats(*batch[:2])
        assert nats == pytest.approx(kernel_loss.item() * (batch.targets_BT >= 0).sum().item(), rel=1e-6)
        assert grads.keys() == expected.keys()
        for name, grad in expected.items():
            error = (grads[name] - grad).norm() / grad.norm().clamp(min=1e-12)
            assert error < tolerance, f"{name} at {precision}: {error:.2e}"


@pytest.mark.parametrize("document_ends", ["nonempty", "never"])
def test_kernel_rules_out_boundaries_as_autograd_does(document_ends: Any) -> None:
    rows, length, vocab, settings = SHAPES["odd lengths"]
    model, batch = make_model(length, vocab, **settings), make_batch(rows, length, vocab)
    unmasked, _ = autograd_loss_and_grads(model, batch)
    model.set_document_ends(document_ends)
    batch.targets_BT[(batch.targets_BT == BOUNDARY) & (batch.inputs_BT == BOUNDARY)] = 1
    if document_ends == "never":
        batch.targets_BT[batch.targets_BT == BOUNDARY] = 1
    loss, expected = autograd_loss_and_grads(model, batch)
    assert loss < unmasked
    kernel_loss, grads = kernel_of(model).loss_and_grads(*batch[:2])
    assert kernel_loss.item() == pytest.approx(loss.item(), rel=1e-5)
    for name, grad in expected.items():
        assert (grads[name] - grad).norm() < 1e-5 * grad.norm()


@pytest.mark.parametrize("document_ends", ["anywhere", "nonempty", "never"])
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_match_forward_in_float64(shape: str, document_ends: Any) -> None:
    rows, length, vocab, settings = SHAPES[shape]
    model, batch = make_model(length, vocab, **settings).eval(), make_batch(rows, length, vocab)
    model.set_document_ends(document_ends)
    twin = copy.deepcopy(model).double()
    with torch.no_grad():
        expected = twin(batch.inputs_BT)[0].log_softmax(-1)
        scored = kernel_of(model).logits(batch.inputs_BT).double().log_softmax(-1)
    assert (scored - expected).abs().max() < 2e-5


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86-64 only")
@pytest.mark.parametrize("flag", ["-mno-avx512bf16", "-mno-avx512f", "-mno-avx"])
def test_kernel_matches_autograd_without_newer_cpu_features(flag: str) -> None:
    rows, length, vocab, settings = SHAPES["odd lengths"]
    model, batch = make_model(length, vocab, **settings), make_batch(rows, length, vocab)
    library = LIBRARY.load(flag)
    assert library is not None
    loss, expected = autograd_loss_and_grads(model, batch)
    kernel_loss, grads = TransformerKernel(model, library).loss_and_grads(*batch[:2])
    assert kernel_loss.item() == pytest.approx(loss.item(), rel=1e-5)
    for name, grad in expected.items():
        assert (grads[name] - grad).norm() < 1e-5 * grad.norm()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86-64 only")
def test_kernel_matches_autograd_without_tile_registers() -> None:
    rows, length, vocab, settings = SHAPES["odd lengths"]
    model, batch = make_model(length, vocab, **settings), make_batch(rows, length, vocab)
    library = LIBRARY.load("-mno-amx-bf16")
    assert library is not None
    loss, expected = autograd_loss_and_grads(model, batch)
    kernel_loss, grads = TransformerKernel(model, library).loss_and_grads(*batch[:2])
    assert kernel_loss.item() == pytest.approx(loss.item(), rel=0.03)
    for name, grad in expected.items():
        assert (grads[name] - grad).norm() < 0.03 * grad.norm()


def test_uninitialised_memory_is_never_read() -> None:
    model = make_model(50, 27, n_embd=64, n_layer=2)
    batch, results = make_batch(3, 50, 27), []
    for fill in (0, 255):
        kernel = kernel_of(model)
        kernel.loss_and_grads(*batch[:2])
        for tensor in (kernel.memory, kernel.packed, kernel.grads_PN):
            tensor.fill_(fill)
        loss, grads = kernel.loss_and_grads(*batch[:2])
        results.append([loss.clone(), *(grad.clone() for grad in grads.values())])
    for zeros, nans in zip(*results, strict=True):
        assert torch.equal(zeros, nans)


def test_results_do_not_depend_on_the_thread_count() -> None:
    model, batch = make_model(40, 27, n_embd=64, n_layer=2, dropout=0.3), make_batch(5, 40, 27)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            torch.manual_seed(3)
            results.append(kernel_of(model).loss_and_grads(*batch[:2]))
    finally:
        torch.set_num_threads(threads)
    for loss, grads in results[1:]:
        torch.testing.assert_close(loss, results[0][0])
        for name, grad in grads.items():
            torch.testing.assert_close(grad, results[0][1][name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "name", ["embedding.weight", "blocks.0.attention.qkv.weight", "blocks.1.convs.0.weight"]
)
def test_gradients_with_dropout_match_finite_differences(name: str) -> None:
    model, batch = make_model(40, 27, n_embd=32, n_head=2, n_layer=2, dropout=0.2), make_batch(4, 40, 27)
    kernel = kernel_of(model)

    def loss(seed: int = 5) -> float:
        torch.manual_seed(seed)
        return kernel.loss_and_grads(*batch[:2])[0].item()

    torch.manual_seed(5)
    grad = kernel.loss_and_grads(*batch[:2])[1][name].clone()
    weight = model.get_parameter(name)
    direction, original = grad / grad.norm(), weight.detach().clone()
    losses = []
    for sign in (1, -1):
        weight.data.copy_(original + sign * 1e-2 * direction)
        losses.append(loss())
    weight.data.copy_(original)
    assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(grad.norm().item(), rel=0.02)
    assert loss() == loss()
    assert loss() != loss(6)
    model.eval()
    assert loss() == pytest.approx(autograd_loss_and_grads(model, batch)[0].item(), rel=1e-5)


def test_dropout_drops_the_configured_fraction() -> None:
    """An embedding gradient element is near zero where its activation was dropped."""
    model = make_model(32, 64, n_embd=512, n_head=1, n_layer=1, dropout=0.25)
    inputs = torch.arange(1, 33)[None]  # each token occurs once
    _, grads = kernel_of(model).loss_and_grads(inputs, inputs)
    # The norm's backward pass adds a small gradient to every element.
    embedding_grad = grads["embedding.weight"][1:33]
    dropped_fraction = (embedding_grad.abs() < 0.05 * embedding_grad.abs().mean()).float().mean().item()
    assert 0.2 < dropped_fraction < 0.4


def test_a_batch_without_targets_gives_zero_loss_and_gradients() -> None:
    model = make_model(32, 27, n_embd=32, n_head=1, n_layer=1)
    loss, grads = kernel_of(model).loss_and_grads(torch.ones(2, 32).long(), torch.full((2, 32), IGNORE_INDEX))
    assert loss == 0
    assert all(not grad.any() for grad in grads.values())


def test_training_with_the_kernel_matches_autograd() -> None:
    batches = [make_batch(4, 32, 27) for _ in range(12)]
    config = TrainConfig(steps=12, optimizer="muon", lr=3e-3)
    curves = []
    for use_kernel, learner_class in ((True, ManualLearner), (False, AutogradLearner)):
        model = make_model(32, 27, n_embd=32, n_head=2)
        kernel = find_kernel(model, torch.float32) if use_kernel else None
        learner = make_learner(model, config, torch.float32, False, native=kernel)
        assert type(learner) is learner_class
        curves.append([learner.step([batch], i, i / 12).loss for i, batch in enumerate(batches)])
    torch.testing.assert_close(torch.stack(curves[0]), torch.stack(curves[1]), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("vocab", "settings"),
    [
        (27, {"style": "gpt2"}),
        (27, {"n_embd": 80, "n_head": 2}),
        (27, {"n_embd": 32, "n_head": 8}),
        (MAX_VOCABULARY + 1, {}),
        (27, {"n_embd": 1024, "n_layer": 2}),
    ],
)
def test_unsupported_models_have_no_kernel(vocab: int, settings: dict[str, Any]) -> None:
    model = make_model(32, vocab, **{"n_embd": 32, "n_head": 2, "n_layer": 1, **settings})
    assert find_kernel(model, torch.float32) is None


def test_without_a_compiler_there_is_no_kernel(no_compiler: None) -> None:
    assert find_kernel(make_model(32, 27, n_embd=32, n_head=2), torch.float32) is None
