"""BatchNormMLP's hand-written backward pass and batch norm, checked against autograd and nn.BatchNorm1d."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from makemore.models.batchnorm_mlp import BatchNormMLP, BatchNormMLPConfig
from makemore.models.layers.batchnorm import BatchNorm
from makemore.types import IGNORE_INDEX

V = 11


def make(seed: int = 0, nonzero: bool = False, **settings: Any) -> BatchNormMLP:
    """A small model; ``nonzero`` randomises the zero-initialised head so gradients reach every layer."""
    torch.manual_seed(seed)
    model = BatchNormMLP(BatchNormMLPConfig(**{"n_embd": 5, "n_hidden": 16, **settings}), V, 0)
    if nonzero:
        nn.init.normal_(model.head.weight, std=0.5)
        for name, parameter in model.named_parameters():
            if name.startswith("norms"):
                nn.init.normal_(parameter, mean=1.0, std=0.3)
    return model


def batch(seed: int = 1, rows: int = 6) -> tuple[Tensor, Tensor]:
    """Inputs and targets (B, T) with padding at row ends and an ignored prefix."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(0, V, (rows, 9), generator=generator)
    targets = torch.randint(0, V, (rows, 9), generator=generator)
    targets[0, 4:] = IGNORE_INDEX
    targets[1, :3] = IGNORE_INDEX
    targets[2] = IGNORE_INDEX
    return inputs, targets


def autograd_loss(model: BatchNormMLP, inputs: Tensor, targets: Tensor) -> Tensor:
    logits, _ = model(inputs, valid_BT=targets != IGNORE_INDEX)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX)


def torch_reference(model: BatchNormMLP) -> nn.Sequential:
    """The same network built from torch.nn layers, mapping a window's embeddings to logits."""
    layers: list[nn.Module] = []
    for hidden, ours in zip(model.hidden, model.norms, strict=True):
        norm = nn.BatchNorm1d(ours.weight.numel(), eps=ours.eps, momentum=ours.momentum).double()
        norm.load_state_dict(ours.state_dict(), strict=False)
        layers += [hidden, norm, nn.Tanh()]
    return nn.Sequential(*layers, model.head)


@pytest.mark.parametrize("backprop", ["fused", "steps"])
@pytest.mark.parametrize("n_layer", [1, 3])
def test_hand_written_gradients_match_autograd(backprop: str, n_layer: int) -> None:
    model = make(nonzero=True, backprop=backprop, n_layer=n_layer).double()
    inputs, targets = batch()
    loss, grads = model.loss_and_grads(inputs, targets)
    expected = autograd_loss(model, inputs, targets)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    assert set(grads) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 1e-6
        torch.testing.assert_close(grads[name], parameter.grad, rtol=0, atol=1e-9)


@pytest.mark.parametrize("backprop", ["fused", "steps"])
def test_loss_gradients_and_running_statistics_match_torch_layers(backprop: str) -> None:
    model = make(nonzero=True, backprop=backprop, n_layer=2).double()
    reference = torch_reference(model)
    windows, targets = model._examples(*batch())
    expected = F.cross_entropy(reference(model.embedding(windows).flatten(1)), targets)
    loss, grads = model.loss_and_grads(*batch())
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    expected.backward()
    for ours, theirs in (("norms.0", reference[1]), ("norms.1", reference[4])):
        torch.testing.assert_close(grads[f"{ours}.weight"], theirs.weight.grad)
        torch.testing.assert_close(grads[f"{ours}.bias"], theirs.bias.grad)
        norm = model.get_submodule(ours)
        torch.testing.assert_close(norm.running_mean, theirs.running_mean)
        torch.testing.assert_close(norm.running_var, theirs.running_var)


@pytest.mark.parametrize("backprop", ["fused", "steps"])
def test_forward_and_loss_and_grads_update_running_statistics_equally(backprop: str) -> None:
    by_hand, by_forward = (make(n_layer=2, backprop=backprop).double() for _ in range(2))
    for seed in range(4):
        inputs, targets = batch(seed)
        by_hand.loss_and_grads(inputs, targets)
        by_forward(inputs, valid_BT=targets != IGNORE_INDEX)
    for (name, ours), theirs in zip(by_hand.named_buffers(), by_forward.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_batch_norm_matches_torch_in_train_and_eval_mode() -> None:
    ours, theirs = BatchNorm(7, 0.2).double(), nn.BatchNorm1d(7, momentum=0.2).double()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    torch.manual_seed(0)
    for x in 3 * torch.randn(5, 4, 6, 7, dtype=torch.double) + 1:
        expected = theirs(x.flatten(0, 1)).view_as(x)
        torch.testing.assert_close(ours(x), expected)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x.flatten(0, 1)).view_as(x))


def test_batch_norm_ignores_padding_in_forward_and_backward() -> None:
    ours, theirs = BatchNorm(7).double(), nn.BatchNorm1d(7).double()
    torch.manual_seed(0)
    x = torch.randn(4, 6, 7, dtype=torch.double, requires_grad=True)
    valid = torch.rand(4, 6) < 0.6
    torch.testing.assert_close(ours(x, valid)[valid], theirs(x[valid]))
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    all_valid = torch.ones(4, 6, dtype=torch.bool)
    torch.testing.assert_close(ours(x, all_valid), ours(x))
    ours(x, valid)[valid].square().sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad.any(-1), valid)


@pytest.mark.parametrize("backprop", ["fused", "steps"])
def test_padding_tokens_do_not_affect_loss_gradients_or_statistics(backprop: str) -> None:
    inputs, targets = batch()
    changed = inputs.clone()
    changed[0, 4:], changed[2] = 7, 3
    results = []
    for tokens in (inputs, changed):
        model = make(nonzero=True, backprop=backprop)
        loss, grads = model.loss_and_grads(tokens, targets)
        results.append([loss, *grads.values(), *model.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("backprop", ["fused", "steps"])
def test_no_autograd_graph_is_built(backprop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(nonzero=True, backprop=backprop)
    grad_enabled = []
    examples = model._examples
    monkeypatch.setattr(
        model, "_examples", lambda *a: (grad_enabled.append(torch.is_grad_enabled()), examples(*a))[1]
    )
    assert torch.is_grad_enabled()
    loss, grads = model.loss_and_grads(*batch())
    assert grad_enabled == [False]
    assert loss.grad_fn is None
    assert all(g.grad_fn is None for g in grads.values())
    assert not any(p.grad is not None for p in model.parameters())
    assert not any(b.requires_grad for b in model.buffers())


@pytest.mark.parametrize("backprop", ["fused", "steps"])
def test_hundred_hand_written_and_autograd_steps_give_the_same_losses(backprop: str) -> None:
    by_hand, by_autograd = (make(backprop=backprop) for _ in range(2))
    for step in range(100):
        inputs, targets = batch(step % 5)
        loss, grads = by_hand.loss_and_grads(inputs, targets)
        expected = autograd_loss(by_autograd, inputs, targets)
        expected_grads = torch.autograd.grad(expected, list(by_autograd.parameters()))
        with torch.no_grad():
            for name, parameter in by_hand.named_parameters():
                parameter -= 0.5 * grads[name]
            for parameter, grad in zip(by_autograd.parameters(), expected_grads, strict=True):
                parameter -= 0.5 * grad
        assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert loss < 0.9 * math.log(V)


def test_initial_loss_is_ln_v_with_the_zero_head_and_far_above_it_without() -> None:
    model = make(n_layer=3, n_hidden=128)
    assert model.loss_and_grads(*batch())[0].item() == pytest.approx(math.log(V), abs=1e-5)
    nn.init.normal_(model.head.weight)
    assert model.loss_and_grads(*batch())[0].item() > 3 * math.log(V)


def test_first_layer_preactivations_have_the_kaiming_std() -> None:
    torch.manual_seed(0)
    model = BatchNormMLP(BatchNormMLPConfig(), 27, 0)
    windows = torch.randint(0, 27, (500, 3))
    hprebn = model.hidden[0](model.embedding(windows).flatten(1))
    assert hprebn.std().item() == pytest.approx(5 / 3, rel=0.1)


def test_batches_with_at_most_one_valid_position_stay_finite() -> None:
    inputs, targets = batch()
    for backprop in ("fused", "steps"):
        for n_valid in (0, 1):
            model = make(nonzero=True, backprop=backprop)
            few_targets = torch.full_like(targets, IGNORE_INDEX)
            few_targets[0, :n_valid] = 3
            loss, grads = model.loss_and_grads(inputs, few_targets)
            model(inputs, valid_BT=few_targets != IGNORE_INDEX)
            assert all(torch.isfinite(x).all() for x in (loss, *grads.values()))
            assert torch.equal(model.norms[0].running_mean, torch.zeros(16))
            assert torch.equal(model.norms[0].running_var, torch.ones(16))


@pytest.fixture
def trained() -> BatchNormMLP:
    """A model in eval mode, with running statistics other than 0 and 1."""
    model = make(nonzero=True, n_layer=2).double()
    for seed in range(5):
        model.loss_and_grads(*batch(seed))
    return model.eval()


def test_in_eval_mode_rows_are_independent(trained: BatchNormMLP) -> None:
    inputs, _ = batch()
    together, _ = trained(inputs)
    alone = torch.cat([trained(row[None])[0] for row in inputs])
    torch.testing.assert_close(alone, together)
    assert trained(inputs[:1, :1])[0].isfinite().all()
    before = [b.clone() for b in trained.buffers()]
    trained(inputs, valid_BT=inputs > 3)
    assert all(torch.equal(a, b) for a, b in zip(before, trained.buffers(), strict=True))


@pytest.mark.parametrize("chunk_sizes", [[1] * 9, [2, 3, 4], [8, 1]])
@pytest.mark.parametrize("block_size", [1, 3, 12])
def test_chunked_calls_with_state_match_one_call(chunk_sizes: list[int], block_size: int) -> None:
    model = make(nonzero=True, block_size=block_size).double().eval()
    inputs, _ = batch()
    expected, no_state = model(inputs)
    assert no_state is None
    state, chunks = model.init_state(len(inputs), 9), []
    for chunk in inputs.split(chunk_sizes, dim=1):
        logits, state = model(chunk, state)
        chunks.append(logits)
    torch.testing.assert_close(torch.cat(chunks, dim=1), expected)


def test_a_token_affects_exactly_the_windows_that_hold_it(trained: BatchNormMLP) -> None:
    inputs = batch()[0][:1]
    changed = inputs.clone()
    changed[0, 4] = (changed[0, 4] + 1) % V
    differs = (trained(inputs)[0] != trained(changed)[0]).any(-1)[0]
    assert differs.nonzero().flatten().tolist() == [4, 5, 6]


@pytest.mark.parametrize("settings", [{"n_layer": 0}, {"block_size": 0}, {"momentum": 0.0}, {"eps": 0.0}])
def test_invalid_settings_are_rejected(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        BatchNormMLPConfig(**settings)
