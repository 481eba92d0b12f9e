"""No loss or gradient that is NaN or infinite reaches the weights."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from makemore.models.mlp import MLP, MLPConfig
from makemore.runs.directory import RunDir
from makemore.settings import TrainConfig
from makemore.training.learners.autograd import AutogradLearner
from makemore.training.learners.guard import NonFiniteError
from makemore.training.optimizers.optimizer_set import OptimizerSet
from makemore.training.optimizers.sgd import SGD
from makemore.training.records import Diverged, TrainResult
from makemore.training.request import TrainRequest
from makemore.training.train import train
from makemore.types import Batch
from tests.reliability.test_resuming import RecordingObserver, metrics_of, request_for, same, state_of, texts

__all__ = ["texts"]

BACKWARD = AutogradLearner.backward


@pytest.fixture
def request_(texts, tmp_path) -> TrainRequest:
    return request_for(
        texts["lines"], "mlp", tmp_path / "run", save_interval=0.0, grad_accum_steps=1, optimizer="adamw"
    )


def inject(monkeypatch, call: int, loss: float | None = None, grad: float | None = None, above: float = 0.0):
    """From the nth backward pass on, while ``lr_scale > above``, replace the loss or a gradient entry."""
    calls = iter(range(1, 10**6))

    def backward(self, *args, **kwargs):
        actual_loss = BACKWARD(self, *args, **kwargs)
        if next(calls) < call or self.optimizers.scale <= above:
            return actual_loss
        if grad is not None:
            next(self.model.parameters()).grad.view(-1)[0] = grad
        return actual_loss if loss is None else torch.full_like(actual_loss, loss)

    monkeypatch.setattr(AutogradLearner, "backward", backward)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"loss": math.nan}, "the loss is nan at step 8"),
        ({"loss": math.inf}, "the loss is inf at step 8"),
        ({"grad": math.nan}, "the gradient norm is nan at step 8"),
        ({"grad": -math.inf}, "the gradient norm is inf at step 8"),
    ],
)
def test_diverged_step_is_named_and_discarded(request_, monkeypatch, tmp_path, fault, message):
    with monkeypatch.context() as patch:
        inject(patch, 8, **fault)
        with pytest.raises(Diverged, match=message) as error:
            train(request_)
    assert "try train.lr=0.001" in str(error.value)
    folder = RunDir(request_.out)
    run_id = folder.read_config().run_id
    assert all(t.isfinite().all() for t in folder.read_model(run_id).values())
    state = folder.states.read_newest(run_id).state
    assert state["trainer"]["step"] == 6
    assert all(t.isfinite().all() for t in state["learner"]["model"].values())
    # The saved state resumes to the result of a run without faults.
    train(dataclasses.replace(request_, resume=True, train={}, settings=()))
    train(dataclasses.replace(request_, out=tmp_path / "reference"))
    assert same(state_of(tmp_path / "run"), state_of(tmp_path / "reference"))
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "reference")


def test_far_too_high_learning_rate_is_reported(request_):
    unstable = {"lr": 1e30, "optimizer": "sgd", "clip": 0.0, "warmup_steps": 0, "patience": 0}
    with pytest.raises(Diverged, match=r"try train.lr=3.3e\+29, train.clip=1 or train.on_divergence"):
        train(dataclasses.replace(request_, train={**request_.train, **unstable}))


def batch(seed: int) -> Batch:
    tokens = torch.randint(0, 5, (4, 9), generator=torch.Generator().manual_seed(seed))
    return Batch(tokens[:, :-1], tokens[:, 1:])


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_deferred_check_skips_updates_on_the_device(optimizer, monkeypatch):
    """On CUDA, the device skips all updates from the first non-finite one, and ``check`` names its step."""
    torch.manual_seed(0)
    config = TrainConfig(optimizer=optimizer, weight_decay=0.1, steps=9)
    learner = AutogradLearner(
        MLP(MLPConfig(block_size=3, n_embd=8, n_hidden=8), 5, 0), config, torch.float32, False
    )
    learner.finite_guard.raises_immediately, learner.finite_guard.skips = False, True
    if optimizer == "sgd":
        groups = [{"params": g["params"], "decay": 0.1} for g in learner.optimizers.parts[0].param_groups]
        learner.optimizers.parts[0] = SGD(groups, lr=0.1, momentum=0.9, fused=True)
    for step in range(3):
        learner.step([batch(step)], step, 0.0)
    learner.check()
    before = {name: t.clone() for name, t in learner.model.state_dict().items()}
    inject(monkeypatch, 1, grad=math.nan)
    learner.step([batch(3)], 3, 0.0)
    monkeypatch.undo()
    for step in (4, 5):
        learner.step([batch(step)], step, 0.0)
    assert same(learner.model.state_dict(), before)
    with pytest.raises(NonFiniteError, match="the gradient norm is nan at step 4"):
        learner.check()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_skip_flag_does_not_change_finite_steps(optimizer):
    """The weights are bit-identical with and without the skip flag."""
    weights = []
    for skip in (None, torch.zeros(())):
        torch.manual_seed(0)
        model = MLP(MLPConfig(block_size=3, n_embd=8, n_hidden=8), 5, 0)
        optimizers = OptimizerSet(model, TrainConfig(optimizer=optimizer, weight_decay=0.1, steps=9))
        for step in range(3):
            logits, _ = model(batch(step).inputs_BT)
            logits.square().mean().backward()
            optimizers.set_lr(step, 0.0)
            optimizers.step(skip)
        weights.append(model.state_dict())
    assert same(*weights)


class TestRollback:
    def train(self, request_: TrainRequest, observer: RecordingObserver | None = None) -> TrainResult:
        settings = {**request_.train, "on_divergence": "rollback"}
        return train(dataclasses.replace(request_, train=settings), observer)

    def test_restores_a_state_and_halves_the_learning_rate(self, request_, monkeypatch):
        inject(monkeypatch, 8, loss=math.nan, above=0.25)
        observer = RecordingObserver()
        assert self.train(request_, observer).steps == 10
        rollbacks = [line for line in observer.notes if "back to step" in line]
        assert rollbacks == [
            "the loss is nan at step 8; back to step 6, learning rate scaled by 0.5",
            "the loss is nan at step 7; back to step 6, learning rate scaled by 0.25",
        ]
        assert state_of(request_.out)["learner"]["optimizers"]["scale"] == 0.25
        assert [line["step"] for line in metrics_of(request_.out)] == [1, 3, 6, 9, 10]

    def test_restores_the_initial_state_before_any_evaluation(self, request_, monkeypatch):
        inject(monkeypatch, 1, grad=math.inf, above=0.5)
        observer = RecordingObserver()
        assert self.train(request_, observer).steps == 10
        assert any("at step 1; back to step 0, learning rate scaled by 0.5" in n for n in observer.notes)

    def test_gives_up_after_ten_rollbacks(self, request_, monkeypatch):
        inject(monkeypatch, 8, loss=math.nan)
        observer = RecordingObserver()
        with pytest.raises(Diverged, match="the loss is nan at step 7"):
            self.train(request_, observer)
        assert sum("back to step" in line for line in observer.notes) == 10

    def test_time_spent_before_a_rollback_counts(self, request_, monkeypatch):
        ticks = iter(range(10**6))
        monkeypatch.setattr("makemore.training.trainer.time.perf_counter", lambda: float(next(ticks)))
        inject(monkeypatch, 12, loss=math.nan, above=0.5)
        timed = {**request_.train, "steps": None, "max_time": 40.0, "patience": 0, "save_interval": 1e9}
        result = self.train(dataclasses.replace(request_, train=timed))
        assert result.seconds <= 44
        assert result.steps < 30
