"""The training loop: budgets, evaluation intervals, early stopping, divergence, resuming."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from makemore.errors import UserError
from makemore.models.bigram import Bigram, BigramConfig
from makemore.settings import TrainConfig
from makemore.training.fitting import fitted
from makemore.training.learners.base import Learner, Metrics
from makemore.training.observers import Observer
from makemore.training.optimizers.ema import EMA
from makemore.training.records import TrainingInterrupted
from makemore.training.request import TrainRequest
from makemore.training.train import train
from makemore.training.trainer import Trainer
from makemore.types import Batch


class FakeLearner(Learner):
    """Returns scripted losses; each step sets the weights to the step count."""

    def __init__(self, losses=None):
        super().__init__(Bigram(BigramConfig(), 3, 0))
        self.losses = losses

    def step(self, batches, step, progress):
        with torch.no_grad():
            self.model.W.fill_(step + 1)
        loss = self.losses[step] if self.losses else 1.0
        return Metrics(torch.tensor(loss), None, torch.tensor(7 * len(batches)))


class RecordingLearner(FakeLearner):
    """Records each step's progress argument and the weights before the step."""

    def __init__(self):
        super().__init__()
        self.progress, self.weight = [], []

    def step(self, batches, step, progress):
        self.progress.append(progress)
        self.weight.append(self.model.W[0, 0].item())
        return super().step(batches, step, progress)


class FakeLoader:
    progress = None

    def __init__(self, batches=None):
        self.remaining = batches

    def next(self):
        if self.remaining is not None:
            if not self.remaining:
                raise StopIteration
            self.remaining -= 1
        return Batch(torch.zeros(1, 7, dtype=torch.int64), torch.zeros(1, 7, dtype=torch.int64))

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def fit(config, losses=None, vals=None, loader=None, stop=lambda: False):
    script = iter(vals) if vals else None
    trainer = Trainer(
        FakeLearner(losses), loader or FakeLoader(), config, (lambda: next(script)) if script else None, stop
    )
    return trainer, list(trainer.fit())


def test_steps_are_counted_exactly():
    trainer, records = fit(TrainConfig(steps=13))
    assert trainer.step == records[-1].step == 13
    assert records[-1].tokens == 13 * 7
    assert records[-1].progress == 1.0
    assert trainer.finished


def test_evaluations_run_at_the_interval_and_at_the_end():
    _, records = fit(TrainConfig(steps=10, eval_interval=4, patience=0), vals=[3.0, 2.0, 2.5])
    assert [(r.step, r.val) for r in records if r.val is not None] == [(4, 3.0), (8, 2.0), (10, 2.5)]


def test_the_best_weights_are_kept():
    trainer, records = fit(TrainConfig(steps=10, eval_interval=4, patience=0), vals=[3.0, 2.0, 2.5])
    assert (trainer.best_step, trainer.best_val) == (8, 2.0)
    assert trainer.best["W"][0, 0] == 8
    assert [r.improved for r in records if r.val is not None] == [True, True, False]


@pytest.mark.parametrize("shape", [{"schedule": "constant"}, {"warmdown_fraction": 0.0, "warmup_steps": 0}])
def test_early_stopping_without_learning_rate_decay(shape):
    config = TrainConfig(steps=100, eval_interval=2, patience=3, **shape)
    trainer, _ = fit(config, vals=[2.0, 1.0, 1.5, 1.6, 1.7, 1.8])
    assert trainer.stopped_early
    assert (trainer.step, trainer.best_step) == (10, 4)


def test_a_stall_before_decay_restarts_from_the_best_weights_at_decay_start():
    config = TrainConfig(steps=100, eval_interval=2, patience=3, warmup_steps=0, warmdown_fraction=0.6)
    vals = iter([2.0, 1.0, 1.5, 1.6, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    learner = RecordingLearner()
    trainer = Trainer(learner, FakeLoader(), config, lambda: next(vals))
    records = list(trainer.fit())
    # Decay starts at 40% of the budget: step 8 becomes 40% of a budget of 20 steps.
    assert trainer.step == records[-1].step == 20
    assert trainer.stopped_early
    assert learner.progress == pytest.approx([i / 100 for i in range(8)] + [i / 20 for i in range(8, 20)])
    assert learner.weight[7:10] == [7.0, 4.0, 9.0]  # restarted from the best weights, step 4
    assert any("from there at a lower learning rate" in record.note for record in records)
    assert (trainer.best_step, trainer.best_val) == (20, 0.4)


def test_a_stall_during_decay_halves_the_learning_rate():
    config = TrainConfig(steps=20, eval_interval=2, patience=4, warmup_steps=0, warmdown_fraction=1.0)
    learner, vals = RecordingLearner(), iter([3.0, 2.9, 3.0, 3.1, 2.8, 2.7, 2.6])
    trainer = Trainer(learner, FakeLoader(), config, lambda: next(vals))
    list(trainer.fit())
    # Stalls at 40% of 20 steps: continues at 70%, half the learning rate, of 11.4 steps.
    assert learner.progress[7:9] == pytest.approx([7 / 20, 0.7])
    assert learner.weight[8] == 4.0
    assert trainer.step == 12
    assert trainer.stopped_early


def test_a_stall_near_the_end_does_not_shorten_the_budget():
    config = TrainConfig(steps=20, eval_interval=2, patience=4, warmup_steps=0)
    trainer, _ = fit(config, vals=[3.0, 2.9, 2.8, 2.7, 2.6, 2.5, 2.4, 2.5, 2.5, 2.5])
    assert (trainer.budget, trainer.step, trainer.stopped_early) == (1.0, 20, False)


def test_the_budget_can_be_a_time_limit(monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr("makemore.training.trainer.time.perf_counter", lambda: float(next(clock)))
    trainer, records = fit(TrainConfig(max_time=50.0, patience=0), vals=[1.0] * 100)
    assert records[-1].progress == 1.0
    assert 20 < trainer.elapsed <= 53  # each clock reading adds one second
    assert 1 < sum(r.val is not None for r in records) < 25


def test_training_ends_when_the_data_run_out():
    trainer, records = fit(TrainConfig(max_time=3600.0), loader=FakeLoader(5))
    assert trainer.step == 5
    assert trainer.finished
    assert records[-1].improved


def test_a_stop_request_leaves_an_unfinished_saveable_state():
    stop_answers = iter([False] * 4 + [True])
    trainer, records = fit(TrainConfig(steps=100), stop=lambda: next(stop_answers))
    assert (trainer.step, trainer.interrupted, trainer.finished) == (4, True, False)
    assert records[-1].save


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_loss_stops_training(value):
    with pytest.raises(UserError, match="diverged"):
        fit(TrainConfig(steps=4), losses=[1.0, value, 1.0, 1.0])


def test_recorded_losses_are_means_since_the_last_record():
    _, records = fit(TrainConfig(steps=4), losses=[1.0, 2.0, 3.0, 4.0])
    assert records[0].loss == 1.0
    assert records[-1].loss == pytest.approx(3.0)


def test_state_dict_round_trip():
    stop_answers = iter([False] * 6 + [True])
    config = TrainConfig(steps=20, eval_interval=2, patience=0)
    trainer, _ = fit(config, vals=[3.0, 2.0, 2.5], stop=lambda: next(stop_answers))
    other = Trainer(FakeLearner(), FakeLoader(), config, lambda: 9.0)
    other.load_state_dict(trainer.state_dict())
    assert (other.step, other.tokens, other.best_val, other.best_step) == (6, 42, 2.0, 4)
    assert nn.functional.mse_loss(other.best["W"], trainer.best["W"]) == 0
    list(other.fit())
    assert other.step == 20


def test_data_can_run_out_inside_an_accumulated_step():
    trainer, records = fit(TrainConfig(max_time=3600.0, grad_accum_steps=3), loader=FakeLoader(8))
    assert trainer.step == 3
    assert records[-1].tokens == 8 * 7


class FailingLearner(FakeLearner):
    """Raises the error at its third step."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def step(self, batches, step, progress):
        if step == 2:
            raise self.error
        return super().step(batches, step, progress)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        MemoryError(),
    ],
)
def test_an_out_of_memory_error_names_the_setting_to_lower(error):
    trainer = Trainer(FailingLearner(error), FakeLoader(), TrainConfig(steps=9, batch_tokens=512), None)
    with pytest.raises(UserError, match=r"on cpu at step 2: lower train.batch_tokens \(512\)"):
        list(trainer.fit())


def test_other_errors_are_not_reported_as_out_of_memory():
    trainer = Trainer(FailingLearner(RuntimeError("shapes differ")), FakeLoader(), TrainConfig(steps=9), None)
    with pytest.raises(RuntimeError, match="shapes differ"):
        list(trainer.fit())


class EMALearner(FakeLearner):
    """Weights 1, 2, 3, ... and their EMA."""

    def __init__(self):
        super().__init__()
        self.ema = EMA(self.model, 0.5)

    def step(self, batches, step, progress):
        metrics = super().step(batches, step, progress)
        self.ema.update()
        return metrics


@pytest.mark.parametrize(
    ("target", "weights", "best_weight"), [(3.0, "raw", 3.0), (17 / 7, "ema", 17 / 7)], ids=["raw", "ema"]
)
def test_the_better_of_raw_and_ema_weights_is_kept(target, weights, best_weight):
    learner = EMALearner()

    def evaluate():
        return abs(learner.model.W[0, 0].item() - target) + 1

    trainer = Trainer(learner, FakeLoader(), TrainConfig(steps=3), evaluate)
    last = list(trainer.fit())[-1]
    assert trainer.best_weights == weights
    assert trainer.best["W"][0, 0].item() == pytest.approx(best_weight)
    assert last.val == pytest.approx(1.0)
    assert last.val_ema == pytest.approx(abs(17 / 7 - target) + 1)
    assert learner.model.W[0, 0] == 3  # training continues with the raw weights


def test_a_state_without_newer_fields_can_be_loaded():
    trainer, _ = fit(TrainConfig(steps=4), vals=[2.0] * 9)
    state = trainer.state_dict()
    del state["trainer"]["best_weights"]
    other = Trainer(FakeLearner(), FakeLoader(), TrainConfig(steps=4), None)
    other.load_state_dict(state)
    assert (other.best_weights, other.step) == ("raw", 4)


# --- through train() -----------------------------------------------------------------------------


@pytest.fixture
def prose(tmp_path):
    path = tmp_path / "prose.txt"
    path.write_text("the cat sat on the mat. the dog ate the hat. " * 120, encoding="utf-8")
    return path


def request_for(path, model, out, **train):
    settings = {"steps": 12, "eval_interval": 5, "compile": "no", "dtype": "float32", **train}
    small = ("model.n_layer=1", "model.n_embd=32") if model == "transformer" else ()
    return TrainRequest(input=str(path), model=model, out=out, train=settings, settings=small)


@pytest.mark.parametrize("model", ["transformer", "lstm", "wavenet"])
def test_resuming_with_accumulation_and_ema_is_exact(model, prose, tmp_path):
    settings = {"grad_accum_steps": 2, "ema": 0.9, "batch_tokens": 512}
    full = train(request_for(prose, model, tmp_path / "full", **settings))
    stop_answers = iter([False] * 7 + [True] * 1000)
    with pytest.raises(TrainingInterrupted):
        train(request_for(prose, model, tmp_path / "cut", **settings), stop=lambda: next(stop_answers))
    resumed = train(TrainRequest(input=str(prose), model=model, out=tmp_path / "cut", resume=True))
    assert resumed.score.nats == full.score.nats
    assert (resumed.steps, resumed.tokens) == (full.steps, full.tokens)
    assert resumed.used == full.used


def test_gradient_accumulation_does_not_change_the_score(prose, tmp_path):
    scores = [
        train(
            request_for(prose, "transformer", tmp_path / str(n), grad_accum_steps=n, batch_tokens=1024)
        ).score.nll
        for n in (1, 4)
    ]
    assert scores[1] == pytest.approx(scores[0], abs=1e-4)


def test_the_result_records_device_precision_and_optimizer(prose, tmp_path):
    result = train(request_for(prose, "mlp", tmp_path / "run", ema=0.5))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["used"] == result.used
    assert result.used["weights"] in ("raw", "ema")
    del result.used["weights"]
    assert result.used == {
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "precision": "float32",
        "compiled": False,
        "native": False,
        "optimizer": "adamw",
    }


@pytest.mark.parametrize(("save_interval", "seconds", "expected"), [(30, 0.1, 30), (30, 4, 80), (0, 4, 0)])
def test_states_that_take_long_are_saved_less_often(
    save_interval, seconds, expected, prose, tmp_path, monkeypatch
):
    """At most 5% of the time, except if every step is to be saved."""
    clock = iter(range(100_000))
    monkeypatch.setattr("makemore.training.saving.time.perf_counter", lambda: seconds * next(clock))
    request = TrainRequest(
        input=str(prose),
        model="bigram",
        out=tmp_path / "run",
        train={"steps": 3, "save_interval": save_interval},
    )
    with fitted(request, Observer(), lambda: False) as (_, trainer):
        assert trainer.save_interval == expected
