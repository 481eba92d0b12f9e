"""Training steps: reported loss, gradient accumulation, carried state, torch.compile fallback, caches."""

from __future__ import annotations

import copy
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from makemore.corpus.loader import Loader
from makemore.errors import UserError
from makemore.models.base import LanguageModel
from makemore.models.batchnorm_mlp import BatchNormMLP, BatchNormMLPConfig
from makemore.models.bigram import Bigram, BigramConfig
from makemore.models.count import Count
from makemore.models.mlp import MLP, MLPConfig
from makemore.models.rnn import GRU, LSTM, RNN, RecurrentConfig
from makemore.models.smoothing import CountConfig
from makemore.models.transformer import Transformer, TransformerConfig
from makemore.runtime.device import set_compile_cache_dir
from makemore.settings import TrainConfig
from makemore.training.learners import make_learner
from makemore.training.learners.autograd import AutogradLearner
from makemore.training.learners.base import Learner, Metrics
from makemore.training.learners.count import CountLearner
from makemore.training.learners.manual import ManualLearner
from makemore.training.trainer import Trainer
from makemore.types import IGNORE_INDEX, Batch, Split

V = 9
ZERO_LR = {"lr": 0.0, "schedule": "constant", "warmup_steps": 0}


def randomise(model: LanguageModel) -> LanguageModel:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    return model


def make_mlp() -> LanguageModel:
    torch.manual_seed(0)
    return randomise(MLP(MLPConfig(block_size=3, n_embd=4, n_hidden=8), V, 0))


def batch(rows: int = 4, length: int = 32) -> Batch:
    tokens = torch.randint(1, V, (rows, length + 1), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = 0
    return Batch(tokens[:, :-1], tokens[:, 1:])


def autograd(model: LanguageModel, compiled: bool = False, **settings: Any) -> AutogradLearner:
    return AutogradLearner(model, TrainConfig(**{**ZERO_LR, **settings}), torch.float32, compiled)


# --- loss ----------------------------------------------------------------------------------------


def test_loss_is_summed_over_valid_targets_and_divided_once() -> None:
    model, (inputs, targets, _) = make_mlp(), batch()
    targets = targets.clone()
    targets[0, 3:] = IGNORE_INDEX
    targets[2] = IGNORE_INDEX
    metrics = autograd(model).step([Batch(inputs, targets)], 0, 0.0)
    logprobs = model(inputs)[0].detach().double().log_softmax(-1)
    nats = [
        -logprobs[b, t, targets[b, t]].item()
        for b in range(4)
        for t in range(32)
        if targets[b, t] != IGNORE_INDEX
    ]
    assert metrics.tokens == len(nats) == 3 + 32 + 32
    assert metrics.loss.item() == pytest.approx(sum(nats) / len(nats), abs=1e-5)
    assert not metrics.loss.requires_grad


def test_ignored_targets_do_not_affect_the_gradient() -> None:
    updates = []
    for filler in (1, 5):
        model, (inputs, targets, _) = make_mlp(), batch()
        inputs, targets = inputs.clone(), targets.clone()
        inputs[:, 20:], targets[:, 20:] = filler, IGNORE_INDEX
        autograd(model, optimizer="sgd", lr=0.1).step([Batch(inputs, targets)], 0, 0.0)
        updates.append([p.detach().clone() for p in model.parameters()])
    torch.testing.assert_close(updates[0], updates[1])
    assert not torch.equal(updates[0][0], next(make_mlp().parameters()))


def test_a_batch_of_only_padding_does_not_change_the_weights() -> None:
    model, (inputs, targets, _) = make_mlp(), batch()
    metrics = autograd(model, lr=0.1).step([Batch(inputs, torch.full_like(targets, IGNORE_INDEX))], 0, 0.0)
    assert (metrics.loss.item(), metrics.tokens, metrics.grad_norm.item()) == (0.0, 0, 0.0)
    for parameter, expected in zip(model.parameters(), make_mlp().parameters(), strict=True):
        assert torch.equal(parameter, expected)


def test_the_reported_norm_is_the_unclipped_gradient_norm() -> None:
    model, twin, (inputs, targets, _) = make_mlp(), make_mlp(), batch()
    F.cross_entropy(twin(inputs)[0].flatten(0, 1), targets.flatten()).backward()
    expected = torch.cat([p.grad.flatten() for p in twin.parameters()]).norm()
    norm = autograd(model, clip=0.01).step([Batch(inputs, targets)], 0, 0.0).grad_norm
    torch.testing.assert_close(norm, expected)


def test_a_weight_penalty_changes_the_update_but_not_the_reported_loss() -> None:
    results = []
    for penalty in (0.0, 50.0):
        torch.manual_seed(0)
        model = randomise(Bigram(BigramConfig(weight_penalty=penalty), V, 0))
        loss = autograd(model, optimizer="sgd", lr=0.1, clip=0.0).step([batch()], 0, 0.0).loss
        results.append((loss, model.W.detach()))
    assert torch.equal(results[0][0], results[1][0])
    torch.manual_seed(0)
    initial = randomise(Bigram(BigramConfig(), V, 0)).W.detach()
    torch.testing.assert_close(results[1][1], results[0][1] - 0.1 * 2 * 50.0 / V**2 * initial)


# --- gradient accumulation -----------------------------------------------------------------------


def uneven_batch() -> Batch:
    """Rows of different lengths: micro-batches hold different numbers of targets."""
    inputs, targets, _ = batch(rows=6)
    targets = targets.clone()
    for row, length in enumerate((3, 32, 20, 1, 32, 7)):
        targets[row, length:] = IGNORE_INDEX
    return Batch(inputs, targets)


def split_rows(full: Batch, rows: tuple[int, ...]) -> list[Batch]:
    return [Batch(i, t) for i, t in zip(full[0].split(rows), full[1].split(rows), strict=True)]


def make_penalised() -> LanguageModel:
    torch.manual_seed(0)
    return randomise(Bigram(BigramConfig(weight_penalty=3.0), V, 0))


@pytest.mark.parametrize("make", [make_mlp, make_penalised], ids=["mlp", "penalty"])
@pytest.mark.parametrize("rows", [(3, 3), (1, 2, 3), (1, 1, 1, 1, 1, 1)])
def test_accumulating_micro_batches_matches_the_full_batch(
    make: Callable[[], LanguageModel], rows: tuple[int, ...]
) -> None:
    full, accumulated = make().double(), make().double()
    settings = {"optimizer": "sgd", "lr": 0.3, "clip": 0.5}
    full_learner = autograd(full, **settings)
    accum_learner = autograd(accumulated, **settings)
    for step in range(3):
        a = full_learner.step([uneven_batch()], step, 0.0)
        b = accum_learner.step(split_rows(uneven_batch(), rows), step, 0.0)
        assert int(a.tokens) == int(b.tokens) == 3 + 32 + 20 + 1 + 32 + 7
        # Losses are summed in float32 for weights of any dtype.
        torch.testing.assert_close(b.loss, a.loss, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(b.grad_norm, a.grad_norm, atol=1e-5, rtol=1e-5)
    for parameter, expected in zip(accumulated.parameters(), full.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, atol=1e-6, rtol=1e-6)
    assert not torch.equal(next(full.parameters()), next(make().double().parameters()))


def test_hand_written_gradients_accumulate_over_micro_batches() -> None:
    model, full = make_manual(), uneven_batch()
    learner = ManualLearner(model, TrainConfig(), torch.float32, model)
    sums: dict[str, Tensor] = {}
    for part in split_rows(full, (2, 4)):
        _, grads = copy.deepcopy(model).loss_and_grads(*part[:2])
        n = (part.targets_BT != IGNORE_INDEX).sum()
        sums = {name: sums.get(name, 0) + grad * n for name, grad in grads.items()}
    count = torch.tensor(3 + 32 + 20 + 1 + 32 + 7)
    for i, part in enumerate(split_rows(full, (2, 4))):
        learner.backward(*part[:2], count, i == 0, True)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, sums[name] / count)


@pytest.mark.parametrize("kind", [RNN, GRU, LSTM])
def test_micro_batches_of_a_stream_carry_state(kind: type[LanguageModel]) -> None:
    full = autograd(make_recurrent(kind), loader="streams").step([batch()], 0, 0.0)
    accumulated = autograd(make_recurrent(kind), loader="streams").step(halves(continues=True), 0, 0.0)
    assert accumulated.loss.item() == pytest.approx(full.loss.item(), abs=1e-5)


def test_ema_is_updated_per_step_and_saved() -> None:
    learner = autograd(make_mlp(), optimizer="sgd", lr=0.3, ema=0.5)
    learner.step([batch()], 0, 0.0)
    first = learner.model.state_dict()["head.weight"].clone()
    learner.step(split_rows(batch(), (2, 2)), 1, 0.0)
    second = learner.model.state_dict()["head.weight"].clone()
    with learner.ema.applied():
        averaged = learner.model.state_dict()["head.weight"].clone()
    torch.testing.assert_close(averaged, (first + 2 * second) / 3)
    other = autograd(make_mlp(), optimizer="sgd", lr=0.3, ema=0.5)
    other.load_state_dict(copy.deepcopy(learner.state_dict()))
    for each in (learner, other):
        each.step([batch()], 2, 0.0)
    pairs = zip(learner.ema.average, other.ema.average, strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


# --- carried state -------------------------------------------------------------------------------


def make_recurrent(kind: type[LanguageModel]) -> LanguageModel:
    torch.manual_seed(0)
    return randomise(kind(RecurrentConfig(n_embd=4, n_hidden=8), V, 0))


def halves(continues: bool) -> list[Batch]:
    inputs, targets, _ = batch()
    return [Batch(inputs[:, :16], targets[:, :16]), Batch(inputs[:, 16:], targets[:, 16:], continues)]


def losses(learner: Learner, batches: list[Batch]) -> list[float]:
    return [learner.step([b], i, 0.0).loss.item() for i, b in enumerate(batches)]


@pytest.mark.parametrize("kind", [RNN, GRU, LSTM])
def test_two_batches_of_a_stream_have_the_loss_of_one_long_batch(kind: type[LanguageModel]) -> None:
    (full,) = losses(autograd(make_recurrent(kind), loader="streams"), [batch()])
    parts = losses(autograd(make_recurrent(kind), loader="streams"), halves(continues=True))
    assert sum(parts) / 2 == pytest.approx(full, abs=1e-5)


@pytest.mark.parametrize(("loader", "continues"), [("streams", False), ("windows", True)])
def test_state_is_carried_only_between_continuing_stream_batches(loader: str, continues: bool) -> None:
    carried_state = losses(autograd(make_recurrent(GRU), loader="streams"), halves(continues=True))
    fresh = losses(autograd(make_recurrent(GRU), loader=loader), halves(continues))
    (second,) = losses(autograd(make_recurrent(GRU)), halves(continues=False)[1:])
    assert fresh == pytest.approx([carried_state[0], second], abs=1e-6)
    assert abs(carried_state[1] - second) > 1e-3


def test_carried_state_is_saved_and_holds_no_graph() -> None:
    first, second = halves(continues=True)
    learner = autograd(make_recurrent(LSTM), loader="streams")
    learner.step([first], 0, 0.0)
    state = learner.state_dict()
    assert not any(part.requires_grad for part in state["carried"])
    resumed = autograd(make_recurrent(LSTM), loader="streams")
    resumed.load_state_dict(state)
    assert losses(resumed, [second]) == losses(learner, [second])


# --- compiling -----------------------------------------------------------------------------------


def test_training_continues_uncompiled_if_compilation_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing_compile(function: Any, **options: Any) -> Any:
        def call(*arguments: Any) -> Any:
            raise RuntimeError("no C++ compiler\nand a long trace")

        return call

    monkeypatch.setattr(torch, "compile", failing_compile)
    expected = losses(autograd(make_mlp(), lr=0.01), [batch()] * 3)
    learner = autograd(make_mlp(), compiled=True, lr=0.01)
    assert losses(learner, [batch()] * 3) == expected
    assert learner.note == "compilation failed (RuntimeError: no C++ compiler); continuing without it"
    assert (learner.compiled, learner.compile_error) == (False, "RuntimeError: no C++ compiler")


def fails_on_second_call(function: Any, **options: Any) -> Any:
    """Stand in for ``torch.compile``."""
    calls = iter([False, True])

    def call(*arguments: Any) -> Any:
        if next(calls):
            raise RuntimeError("a shape too many")
        return function(*arguments)

    return call


def test_compilation_failure_in_the_second_micro_batch_restarts_the_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = autograd(make_mlp(), lr=0.1).step(split_rows(batch(), (1, 3)), 0, 0.0)
    monkeypatch.setattr(torch, "compile", fails_on_second_call)
    metrics = autograd(make_mlp(), compiled=True, lr=0.1).step(split_rows(batch(), (1, 3)), 0, 0.0)
    assert torch.equal(metrics.grad_norm, expected.grad_norm)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_running_out_of_memory_is_raised(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def out_of_memory(function: Any, **options: Any) -> Any:
        def call(*arguments: Any) -> Any:
            raise error

        return call

    monkeypatch.setattr(torch, "compile", out_of_memory)
    learner = autograd(make_mlp(), compiled=True)
    with pytest.raises(type(error)):
        learner.step([batch()], 0, 0.0)
    assert not learner.note


@pytest.mark.skipif(platform.system() == "Windows", reason="CXX is not used on Windows")
def test_a_missing_cpp_compiler_only_adds_a_note(tmp_path: Path) -> None:
    code = """
import torch
from tests.training.test_learners import autograd, batch, losses, make_mlp
learner = autograd(make_mlp(), compiled=True, lr=0.01)
print(losses(learner, [batch()] * 2) == losses(autograd(make_mlp(), lr=0.01), [batch()] * 2))
print(learner.note)
"""
    broken = {
        **os.environ,
        "CXX": str(tmp_path / "no-compiler"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=broken,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert result.returncode == 0, result.stderr
    same, note = result.stdout.splitlines()
    assert same == "True"
    assert note.startswith("compilation failed (")
    assert note.endswith("continuing without it")


def test_compilation_failure_does_not_lose_carried_state(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = losses(autograd(make_recurrent(GRU), loader="streams"), halves(continues=True))
    monkeypatch.setattr(torch, "compile", fails_on_second_call)
    learner = autograd(make_recurrent(GRU), compiled=True, loader="streams")
    assert losses(learner, halves(continues=True)) == expected


# --- other learners ------------------------------------------------------------------------------


def make_manual() -> BatchNormMLP:
    torch.manual_seed(0)
    model = BatchNormMLP(BatchNormMLPConfig(n_embd=4, n_hidden=8), V, 0)
    randomise(model)
    return model


def test_hand_written_backprop_builds_no_autograd_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_on_save(tensor: Tensor) -> Tensor:
        raise AssertionError("autograd saved a tensor")

    model = make_manual()
    original, grad_enabled = model.loss_and_grads, []

    def recorded(inputs_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        grad_enabled.append(torch.is_grad_enabled())
        return original(inputs_BT, targets_BT)

    monkeypatch.setattr(model, "loss_and_grads", recorded)
    learner = ManualLearner(model, TrainConfig(), torch.float32, model)
    with torch.autograd.graph.saved_tensors_hooks(fail_on_save, lambda tensor: tensor):
        metrics = learner.step([batch()], 0, 0.0)
        loss = learner.backward(*batch()[:2], torch.tensor(4 * 32), True, True)
    assert grad_enabled == [False, False]
    assert not metrics.loss.requires_grad
    assert not loss.requires_grad
    assert all(p.grad.grad_fn is None and not p.grad.requires_grad for p in model.parameters())


def test_hand_written_backprop_trains_like_autograd() -> None:
    by_hand, by_autograd = make_manual(), make_manual()
    config = TrainConfig(optimizer="sgd", lr=0.1, warmup_steps=0)
    by_hand_losses = losses(ManualLearner(by_hand, config, torch.float32, by_hand), [batch()] * 4)
    autograd_losses = losses(AutogradLearner(by_autograd, config, torch.float32, False), [batch()] * 4)
    assert by_hand_losses == pytest.approx(autograd_losses, abs=1e-4)
    assert by_hand_losses[-1] < by_hand_losses[0]
    for (name, a), b in zip(by_hand.state_dict().items(), by_autograd.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3, msg=lambda text, n=name: f"{n}: {text}")


def test_count_learner_reads_held_out_batches_only_in_finish() -> None:
    held_out_calls = []

    def held_out() -> Iterator[Batch]:
        held_out_calls.append(True)
        yield batch()

    model = Count(CountConfig(max_order=3), V, 0)
    learner = make_learner(model, TrainConfig(), precision=torch.float32, compiled=False, held_out=held_out)
    assert learner.step([batch()], 0, 0.0) == Metrics(None, None, 4 * 32)
    assert not held_out_calls
    learner.finish()
    assert held_out_calls == [True]
    assert model.config.order in (1, 2, 3)


def test_make_learner_picks_the_learner_for_each_model() -> None:
    kinds = [
        (Count(CountConfig(order=2), V, 0), CountLearner),
        (make_manual(), ManualLearner),
        (make_mlp(), AutogradLearner),
    ]
    for model, kind in kinds:
        assert type(make_learner(model, TrainConfig(), torch.bfloat16, False)) is kind


# --- divergence ----------------------------------------------------------------------------------


class FakeLoader(Loader):
    """Always yields the same batch."""

    def __init__(self) -> None:
        empty = np.zeros(0, np.int64)
        super().__init__(Split("train", empty, empty, empty, empty), 0)

    def _plan(self) -> int:
        return 1

    def _batch(self, nth: int) -> Batch:
        return batch()


class NaNLearner(Learner):
    """Loss is NaN at the third step."""

    def step(self, batches: Sequence[Batch], step: int, progress: float) -> Metrics:
        return Metrics(torch.tensor(math.nan if step == 2 else 1.0), None, torch.tensor(10))


@pytest.mark.parametrize(("eval_interval", "step"), [(1, 3), (None, 5)])
def test_a_nan_loss_error_names_the_step(eval_interval: int | None, step: int) -> None:
    config = TrainConfig(steps=5, eval_interval=eval_interval, patience=0)
    trainer = Trainer(NaNLearner(make_mlp()), FakeLoader(), config, (lambda: 1.0) if eval_interval else None)
    with pytest.raises(UserError, match=rf"the loss is nan by step {step}: .*try train.lr="):
        list(trainer.fit())


def test_exploding_weights_raise_a_divergence_error() -> None:
    model = make_mlp()
    learner = autograd(model, optimizer="sgd", lr=1e38, clip=0.0)
    trainer = Trainer(learner, FakeLoader(), TrainConfig(steps=6), None)
    with pytest.raises(UserError, match="training diverged"):
        list(trainer.fit())


# --- compile cache -------------------------------------------------------------------------------


@pytest.fixture
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.delenv("MAKEMORE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # makes monkeypatch restore it
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    return tmp_path


def test_compiled_code_is_cached_between_runs(cache_home: Path) -> None:
    set_compile_cache_dir()
    folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert folder == cache_home / "cache" / "makemore" / "compiled"
    assert folder.is_dir()


def test_a_user_set_cache_is_not_overridden(cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    set_compile_cache_dir()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "elsewhere"
    assert list(cache_home.iterdir()) == []


def test_an_unwritable_cache_directory_is_not_an_error(cache_home: Path) -> None:
    (cache_home / "cache").write_text("a file in the way", encoding="utf-8")
    set_compile_cache_dir()
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


def test_transformer_compiles_one_block_and_uses_it_only_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_functions: list[Any] = []
    training_flags: list[bool] = []

    def compile_(function: Any, **options: Any) -> Any:
        compiled_functions.append(function)

        def call(block: Any, *arguments: Any) -> Any:
            training_flags.append(block.training)
            if len(training_flags) == 5:
                raise RuntimeError("a shape too many")
            return function(block, *arguments)

        return call

    def make() -> Transformer:
        torch.manual_seed(0)
        return Transformer(TransformerConfig(block_size=32, n_layer=2, n_embd=8, n_head=2), V, 0)

    expected = losses(autograd(make(), lr=0.01), [batch()] * 4)
    monkeypatch.setattr(torch, "compile", compile_)
    model = make()
    learner = autograd(model, compiled=True, lr=0.01)
    assert losses(learner, [batch()] * 2) == expected[:2]
    model.eval()
    model(torch.ones(1, 3, dtype=torch.int64))
    assert len(compiled_functions) == 1
    assert training_flags == [True] * 4
    # The next block fails to compile: the step is repeated without compilation.
    assert losses(learner, [batch()] * 2) == expected[2:]
    assert "continuing without it" in learner.note
    assert len(training_flags) == 5
