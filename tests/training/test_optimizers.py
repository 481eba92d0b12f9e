"""Learning-rate schedule, Muon, parameter groups and EMA against plain loops and PyTorch's optimizers."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from makemore.models.base import LanguageModel
from makemore.models.bigram import Bigram, BigramConfig
from makemore.models.mlp import MLP, MLPConfig
from makemore.models.rnn import LSTM, LSTMConfig
from makemore.models.transformer import Transformer, TransformerConfig
from makemore.models.wavenet import WaveNet, WaveNetConfig
from makemore.settings import TrainConfig
from makemore.settings.train import ScheduleConfig
from makemore.training.optimizers.ema import EMA
from makemore.training.optimizers.muon import Muon, orthogonalise
from makemore.training.optimizers.optimizer_set import OptimizerSet
from makemore.training.optimizers.schedule import lr_scale

SHAPES = [(8, 8), (16, 6), (8, 8), (6, 16), (16, 6), (8, 8)]
STEADY = {"schedule": "constant", "warmup_steps": 0, "clip": 0.0}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- learning rate -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "step", "progress", "expected"),
    [
        ({"schedule": "constant", "warmup_steps": 4}, 0, 0.0, 0.25),
        ({"schedule": "constant", "warmup_steps": 4}, 3, 0.0, 1.0),
        ({"schedule": "constant", "warmup_steps": 4}, 1000, 1.0, 1.0),
        ({"schedule": "constant", "warmup_steps": 0}, 0, 0.0, 1.0),
        ({"schedule": "cosine", "final_lr_fraction": 0.1, "warmup_steps": 0}, 0, 0.0, 1.0),
        ({"schedule": "cosine", "final_lr_fraction": 0.1, "warmup_steps": 0}, 9, 0.5, 0.55),
        (
            {"schedule": "cosine", "final_lr_fraction": 0.1, "warmup_steps": 0},
            9,
            0.25,
            0.1 + 0.45 * (1 + 0.5**0.5),
        ),
        ({"schedule": "cosine", "final_lr_fraction": 0.1, "warmup_steps": 0}, 9, 1.0, 0.1),
        ({"schedule": "cosine", "final_lr_fraction": 0.1, "warmup_steps": 20}, 9, 0.5, 0.275),
        (
            {"schedule": "linear", "final_lr_fraction": 0.2, "warmdown_fraction": 0.5, "warmup_steps": 0},
            9,
            0.5,
            1.0,
        ),
        (
            {"schedule": "linear", "final_lr_fraction": 0.2, "warmdown_fraction": 0.5, "warmup_steps": 0},
            9,
            0.75,
            0.6,
        ),
        (
            {"schedule": "linear", "final_lr_fraction": 0.2, "warmdown_fraction": 0.5, "warmup_steps": 0},
            9,
            1.0,
            0.2,
        ),
        (
            {"schedule": "linear", "final_lr_fraction": 0.2, "warmdown_fraction": 1.0, "warmup_steps": 0},
            9,
            0.25,
            0.8,
        ),
        (
            {"schedule": "linear", "final_lr_fraction": 0.2, "warmdown_fraction": 0.0, "warmup_steps": 0},
            9,
            0.99,
            1.0,
        ),
        (
            {"schedule": "linear", "final_lr_fraction": 0.2, "warmdown_fraction": 0.5, "warmup_steps": 20},
            9,
            0.75,
            0.3,
        ),
        ({"schedule": "step", "warmdown_fraction": 0.5, "warmup_steps": 0}, 9, 0.49, 1.0),
        ({"schedule": "step", "warmdown_fraction": 0.5, "warmup_steps": 0}, 9, 0.5, 0.1),
        ({"schedule": "step", "warmdown_fraction": 0.5, "warmup_steps": 20}, 9, 1.0, 0.05),
        ({"schedule": "step", "milestones": "0.25, 0.75", "warmup_steps": 0}, 9, 0.2, 1.0),
        ({"schedule": "step", "milestones": "0.25, 0.75", "warmup_steps": 0}, 9, 0.5, 0.1),
        ({"schedule": "step", "milestones": "0.25, 0.75", "warmup_steps": 0}, 9, 0.9, 0.01),
    ],
)
def test_lr_scale(settings: dict[str, Any], step: int, progress: float, expected: float) -> None:
    assert lr_scale(TrainConfig(**settings).schedule, step, progress) == pytest.approx(expected)


@pytest.mark.parametrize("milestones", ["soon", "0.5,", "-0.1", "1.5", "nan", ""])
def test_invalid_milestones_are_rejected(milestones: str) -> None:
    with pytest.raises(ValueError, match="milestones"):
        TrainConfig(milestones=milestones)


@pytest.mark.parametrize(
    "settings", [{"ema": 1.0}, {"ema": -0.1}, {"grad_accum_steps": 0}, {"grad_accum_steps": 4096}]
)
def test_out_of_range_settings_are_rejected(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        TrainConfig(**settings)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_learning_rate_decays_without_jumps(schedule: str) -> None:
    config = ScheduleConfig(shape=schedule, warmup_steps=0)
    scales = [lr_scale(config, 100, i / 1000) for i in range(1001)]
    drops = [a - b for a, b in pairwise(scales)]
    assert all(-1e-12 <= drop < 0.002 for drop in drops)
    assert scales[-1] == pytest.approx(config.final_lr_fraction)


# --- Newton-Schulz -------------------------------------------------------------------------------


def with_singular_values(rows: int, columns: int, low: float, seed: int) -> Tensor:
    u, _, vt = torch.linalg.svd(normal(rows, columns, seed=seed), full_matrices=False)
    return u * torch.linspace(low, 1.0, min(rows, columns)) @ vt


@pytest.mark.parametrize("shape", [(12, 12), (24, 8), (8, 24), (1, 7)])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_orthogonalised_singular_values_are_near_one(shape: tuple[int, int], size: float) -> None:
    matrices = torch.stack([size * with_singular_values(*shape, low=0.1, seed=s) for s in range(5)])
    result = orthogonalise(matrices).float()
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.65
    assert values.max() < 1.25
    u, _, vt = torch.linalg.svd(matrices, full_matrices=False)
    overlap = torch.einsum("kij,kij->k", result, u @ vt) / min(shape)  # with the nearest orthogonal matrix
    assert overlap.min() > 0.65


@pytest.mark.parametrize("shape", [(12, 12), (24, 8), (8, 24)])
def test_stacked_matrices_are_orthogonalised_separately(shape: tuple[int, int]) -> None:
    sizes = [1.0, 1e-3, 50.0, 7.0]
    matrices = torch.stack(
        [size * with_singular_values(*shape, low=0.2, seed=i) for i, size in enumerate(sizes)]
    )
    alone = torch.cat([orthogonalise(matrix[None]) for matrix in matrices])
    torch.testing.assert_close(orthogonalise(matrices), alone, atol=0.02, rtol=0)


def test_a_zero_gradient_stays_zero() -> None:
    assert orthogonalise(torch.zeros(2, 5, 3)).abs().sum() == 0


# --- Muon ----------------------------------------------------------------------------------------


def newton_schulz(matrix: Tensor) -> Tensor:
    """Newton-Schulz iteration of Jordan et al. 2024 for one matrix, in the matrix's dtype."""
    x = matrix / matrix.norm()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x.T if tall else x


def plain_muon(weights: list[Tensor], gradients: list[list[Tensor]], lr: float, decay: float) -> list[Tensor]:
    """The published Muon algorithm, one matrix at a time, in float64."""
    results = []
    for i, weight in enumerate(weights):
        w, velocity = weight.double().clone(), torch.zeros_like(weight, dtype=torch.float64)
        for step in gradients:
            g = step[i].double()
            velocity = 0.95 * velocity + 0.05 * g
            update = newton_schulz(0.05 * g + 0.95 * velocity)
            w = w * (1 - lr * decay) - lr * max(1, w.shape[0] / w.shape[1]) ** 0.5 * update
        results.append(w.float())
    return results


NATIVE_SHAPES = ((32, 32), (96, 64), (64, 160), (96, 64))
"""Sides that C multiplies by whole vectors."""


def muon_problem(
    shapes: Sequence[tuple[int, int]] = SHAPES,
) -> tuple[list[nn.Parameter], list[list[Tensor]]]:
    """Parameters, and gradients for three steps."""
    weights = [nn.Parameter(normal(*shape, seed=i)) for i, shape in enumerate(shapes)]
    gradients = [
        [with_singular_values(*shape, low=0.2, seed=100 * t + i) for i, shape in enumerate(shapes)]
        for t in range(3)
    ]
    return weights, gradients


def step_through(optimizer: torch.optim.Optimizer, weights: Any, gradients: list[list[Tensor]]) -> None:
    for step in gradients:
        for weight, gradient in zip(weights, step, strict=True):
            weight.grad = gradient.clone()
        optimizer.step()


@pytest.mark.parametrize("shapes", [SHAPES, NATIVE_SHAPES])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_muon_matches_the_published_algorithm(shapes: Any, decay: float) -> None:
    weights, gradients = muon_problem(shapes)
    expected = plain_muon([w.detach() for w in weights], gradients, lr=0.1, decay=decay)
    step_through(Muon(weights, lr=0.1, weight_decay=decay), weights, gradients)
    for parameter, target in zip(weights, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), target, atol=0.01, rtol=0)  # bfloat16 products


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
@pytest.mark.parametrize("shapes", [SHAPES, NATIVE_SHAPES])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_muon_matches_pytorch(shapes: Any, decay: float) -> None:
    weights, gradients = muon_problem(shapes)
    twins = [nn.Parameter(w.detach().clone()) for w in weights]
    step_through(Muon(weights, lr=0.1, weight_decay=decay), weights, gradients)
    theirs = torch.optim.Muon(twins, lr=0.1, weight_decay=decay, momentum=0.95, nesterov=True)
    step_through(theirs, twins, gradients)
    for parameter, expected in zip(weights, twins, strict=True):
        torch.testing.assert_close(parameter.detach(), expected.detach(), atol=5e-3, rtol=0)


def test_muon_continues_with_or_without_c(monkeypatch: pytest.MonkeyPatch) -> None:
    velocities = []
    for has_c in (True, False):
        if not has_c:
            monkeypatch.setattr("makemore.training.optimizers.muon.muon_step", lambda *_: False)
        weights, gradients = muon_problem(NATIVE_SHAPES)
        optimizer = Muon(weights, lr=0.1)
        step_through(optimizer, weights, gradients)
        velocities.append([optimizer.state[weight]["velocity"] for weight in weights])
    for with_c, without in zip(*velocities, strict=True):
        torch.testing.assert_close(with_c, without)


@pytest.mark.parametrize("shapes", [SHAPES, NATIVE_SHAPES])
def test_muon_skips_parameters_without_gradient(shapes: Any) -> None:
    weights, gradients = muon_problem(shapes)
    before = weights[0].detach().clone()
    for weight, gradient in zip(weights[1:], gradients[0][1:], strict=True):
        weight.grad = gradient
    Muon(weights, lr=0.1, weight_decay=0.5).step()
    assert torch.equal(weights[0], before)


# --- the optimizers of a model -------------------------------------------------------------------


def make_mlp(seed: int = 0) -> MLP:
    torch.manual_seed(seed)
    return MLP(MLPConfig(block_size=3, n_embd=4, n_hidden=8, n_layer=3), 7, 0)


def give_gradients(model: LanguageModel, seed: int) -> None:
    for i, parameter in enumerate(model.parameters()):
        parameter.grad = normal(*parameter.shape, seed=1000 * seed + i)


@pytest.mark.parametrize("shape", [(6, 4), (96, 32)])
def test_muon_treats_stacked_matrices_separately(shape: tuple[int, int]) -> None:
    gates = [nn.Parameter(normal(*shape, seed=s)) for s in range(3)]
    stacked = nn.Parameter(torch.cat([g.detach().clone() for g in gates]))
    for parameter, seed in zip(gates, range(10, 13), strict=True):
        parameter.grad = normal(*shape, seed=seed)
    stacked.grad = torch.cat([g.grad for g in gates if g.grad is not None])
    Muon(gates, 0.1).step()
    Muon([stacked], 0.1, parts=[3]).step()
    torch.testing.assert_close(stacked.detach(), torch.cat([g.detach() for g in gates]))


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_weight_decay_applies_only_to_matrices(optimizer: str) -> None:
    model = make_mlp()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = TrainConfig(optimizer=optimizer, lr=0.1, matrix_lr=0.2, weight_decay=0.5, **STEADY)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizers = OptimizerSet(model, config)
    optimizers.set_lr(0, 0.0)
    optimizers.step()
    for name, parameter in model.named_parameters():
        lr = 0.2 if optimizer == "muon" and name in model.muon_parameters() else 0.1
        factor = 1 - lr * 0.5 if parameter.ndim >= 2 else 1.0
        torch.testing.assert_close(parameter.detach(), factor * before[name])


@pytest.mark.parametrize(
    ("optimizer", "twin"),
    [
        ("adamw", lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.8, 0.97), weight_decay=0.0)),
        ("sgd", lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8)),
    ],
)
def test_adamw_and_sgd_match_pytorch(optimizer: str, twin: Any) -> None:
    model, other = make_mlp(), make_mlp()
    ours = OptimizerSet(model, TrainConfig(optimizer=optimizer, lr=0.1, beta1=0.8, beta2=0.97, **STEADY))
    theirs = twin(other.parameters())
    for step in range(4):
        give_gradients(model, step)
        give_gradients(other, step)
        ours.set_lr(step, 0.0)
        ours.step()
        theirs.step()
    for parameter, expected in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        make_mlp(),
        Bigram(BigramConfig(), 7, 0),
        Transformer(TransformerConfig(block_size=8, n_layer=2, n_head=2, n_embd=8), 7, 0),
        Transformer(TransformerConfig(block_size=8, n_layer=2, n_head=2, n_embd=8, style="gpt2"), 7, 0),
        LSTM(LSTMConfig(n_embd=4, n_hidden=8, n_layer=2), 7, 0),
    ],
    ids=["mlp", "bigram", "modern", "gpt2", "lstm"],
)
@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_each_parameter_has_exactly_one_optimizer(model: LanguageModel, optimizer: str) -> None:
    optimizers = OptimizerSet(model, TrainConfig(optimizer=optimizer))
    trained = [id(parameter) for parameter in optimizers.parameters]
    assert sorted(trained) == sorted(id(parameter) for parameter in model.parameters())
    by_muon = [
        id(parameter)
        for part in optimizers.parts
        if isinstance(part, Muon)
        for group in part.param_groups
        for parameter in group["params"]
    ]
    named = dict(model.named_parameters())
    expected = model.muon_parameters() if optimizer == "muon" else []
    assert sorted(by_muon) == sorted(id(named[name]) for name in expected)


def test_step_applies_the_schedule_to_every_group_and_clears_gradients() -> None:
    model = make_mlp()
    config = TrainConfig(optimizer="muon", lr=0.1, matrix_lr=0.4, warmup_steps=10, schedule="constant")
    optimizers = OptimizerSet(model, config)
    for step, scale in ((0, 0.1), (4, 0.5), (30, 1.0)):
        give_gradients(model, step)
        optimizers.set_lr(step, 0.0)
        optimizers.step()
        for part in optimizers.parts:
            peak = 0.4 if isinstance(part, Muon) else 0.1
            assert [group["lr"] for group in part.param_groups] == pytest.approx(
                [peak * scale] * len(part.param_groups)
            )
        assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("limit", "scaled"), [(0.5, True), (1e6, False), (0.0, False)])
def test_clipping_scales_all_gradients_together(limit: float, scaled: bool) -> None:
    model = make_mlp()
    give_gradients(model, 0)
    before = [parameter.grad.clone() for parameter in model.parameters()]
    norm = math.sqrt(sum(gradient.double().square().sum().item() for gradient in before))
    reported_norm = OptimizerSet(model, TrainConfig(optimizer="muon", clip=limit)).clip()
    assert reported_norm.item() == pytest.approx(norm, rel=1e-5)
    factor = limit / norm if scaled else 1.0
    for parameter, gradient in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.grad, factor * gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_resuming_from_a_saved_state_is_exact(optimizer: str) -> None:
    config = TrainConfig(optimizer=optimizer, warmup_steps=4, weight_decay=0.1)
    model = make_mlp()
    uninterrupted = OptimizerSet(model, config)

    def steps(model: LanguageModel, optimizers: OptimizerSet, first: int) -> None:
        for step in range(first, first + 3):
            give_gradients(model, step)
            optimizers.set_lr(step, step / 6)
            optimizers.step()

    steps(model, uninterrupted, 0)
    other = make_mlp(seed=1)
    other.load_state_dict(model.state_dict())
    resumed = OptimizerSet(other, config)
    resumed.load_state_dict(copy.deepcopy(uninterrupted.state_dict()))
    steps(model, uninterrupted, 3)
    steps(other, resumed, 3)
    for parameter, expected in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(parameter, expected)


# --- EMA of the weights --------------------------------------------------------------------------


def randomise(model: LanguageModel, step: int) -> None:
    """Set random parameters and buffers that depend on the step."""
    with torch.no_grad():
        for i, tensor in enumerate([*model.parameters(), *model.buffers()]):
            tensor.copy_(normal(*tensor.shape, seed=100 * step + i))


def make_wavenet() -> WaveNet:
    torch.manual_seed(0)
    return WaveNet(WaveNetConfig(block_size=4, n_embd=3, n_hidden=5), 7, 0)


def test_ema_is_the_bias_corrected_weighted_mean() -> None:
    model = make_wavenet()
    average, states = EMA(model, 0.9), []
    for step in range(6):
        randomise(model, step)
        average.update()
        states.append({k: v.double() for k, v in model.state_dict().items()})
    weights = [0.9 ** (5 - step) for step in range(6)]
    raw = {k: v.clone() for k, v in model.state_dict().items()}
    with average.applied():
        for name, averaged in model.state_dict().items():
            expected = sum(w * state[name] for w, state in zip(weights, states, strict=True)) / sum(weights)
            torch.testing.assert_close(averaged.double(), expected, atol=1e-6, rtol=1e-5)
    assert all(torch.equal(v, raw[k]) for k, v in model.state_dict().items())
    assert any("running_mean" in name for name in raw)  # batch norm statistics are averaged too


def test_the_first_ema_equals_the_weights() -> None:
    model = make_mlp()
    average = EMA(model, 0.999)
    average.update()
    assert all(torch.equal(a, b) for a, b in zip(average.average, average.current, strict=True))


def test_an_error_inside_applied_restores_the_raw_weights() -> None:
    model = make_mlp()
    average = EMA(model, 0.5)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(KeyError), average.applied():
        raise KeyError
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_tied_weights_are_averaged_once() -> None:
    model = Transformer(TransformerConfig(block_size=8, n_layer=2, n_head=2, n_embd=8, style="gpt2"), 7, 0)
    average = EMA(model, 0.5)
    assert len({t.data_ptr() for t in average.current}) == len(average.current)
