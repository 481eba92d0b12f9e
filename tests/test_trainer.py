"""Budgets, cadence, early stopping and divergence of the one training loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from makemore.config import TrainConfig
from makemore.errors import UserError
from makemore.learners import Learner, Metrics
from makemore.models.bigram import Bigram, BigramConfig
from makemore.trainer import Trainer
from makemore.types import Batch


class Scripted(Learner):
    """Losses as told; no learning but a counter in the weights."""

    def __init__(self, losses=None):
        super().__init__(Bigram(BigramConfig(), 3, 0))
        self.losses = losses

    def step(self, batch, step, progress):
        with torch.no_grad():
            self.model.W.fill_(step + 1)
        loss = self.losses[step] if self.losses else 1.0
        return Metrics(torch.tensor(loss), None, 7)


class Endless:
    def __init__(self, batches=None):
        self.left = batches

    def next(self):
        if self.left is not None:
            if not self.left:
                raise StopIteration
            self.left -= 1
        return Batch(torch.zeros(1, 7, dtype=torch.int64), torch.zeros(1, 7, dtype=torch.int64))

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def fit(config, losses=None, vals=None, loader=None, stop=lambda: False):
    script = iter(vals) if vals else None
    trainer = Trainer(
        Scripted(losses), loader or Endless(), config, (lambda: next(script)) if script else None, stop
    )
    return trainer, list(trainer.fit())


def test_steps_are_counted_exactly():
    trainer, records = fit(TrainConfig(steps=13))
    assert trainer.step == records[-1].step == 13
    assert records[-1].tokens == 13 * 7
    assert records[-1].progress == 1.0
    assert trainer.finished


def test_evaluations_come_at_their_interval_and_at_the_end():
    _, records = fit(TrainConfig(steps=10, eval_interval=4, patience=0), vals=[3.0, 2.0, 2.5])
    assert [(r.step, r.val) for r in records if r.val is not None] == [(4, 3.0), (8, 2.0), (10, 2.5)]


def test_the_best_weights_are_kept_not_the_last():
    trainer, records = fit(TrainConfig(steps=10, eval_interval=4, patience=0), vals=[3.0, 2.0, 2.5])
    assert (trainer.best_step, trainer.best_val) == (8, 2.0)
    assert trainer.best["W"][0, 0] == 8
    assert [r.improved for r in records if r.val is not None] == [True, True, False]


def test_training_stops_where_val_no_longer_improves():
    trainer, _ = fit(TrainConfig(steps=100, eval_interval=2, patience=3), vals=[2.0, 1.0, 1.5, 1.6, 1.7, 1.8])
    assert trainer.stopped_early
    assert (trainer.step, trainer.best_step) == (10, 4)


def test_time_is_a_budget_too(monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr("makemore.trainer.time.perf_counter", lambda: float(next(clock)))
    trainer, records = fit(TrainConfig(max_time=50.0, patience=0), vals=[1.0] * 100)
    assert records[-1].progress == 1.0
    assert 20 < trainer.elapsed <= 53  # reading the clock takes a second here
    assert 1 < sum(r.val is not None for r in records) < 25


def test_data_that_end_end_training():
    trainer, records = fit(TrainConfig(max_time=3600.0), loader=Endless(5))
    assert trainer.step == 5
    assert trainer.finished
    assert records[-1].improved


def test_a_stop_leaves_a_state_worth_saving_and_nothing_finished():
    answers = iter([False] * 4 + [True])
    trainer, records = fit(TrainConfig(steps=100), stop=lambda: next(answers))
    assert (trainer.step, trainer.stopped, trainer.finished) == (4, True, False)
    assert records[-1].save


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_training(bad):
    with pytest.raises(UserError, match="diverged"):
        fit(TrainConfig(steps=4), losses=[1.0, bad, 1.0, 1.0])


def test_losses_in_records_are_means_over_the_steps_between():
    _, records = fit(TrainConfig(steps=4), losses=[1.0, 2.0, 3.0, 4.0])
    assert records[0].loss == 1.0
    assert records[-1].loss == pytest.approx(3.0)


def test_state_round_trip():
    answers = iter([False] * 6 + [True])
    config = TrainConfig(steps=20, eval_interval=2, patience=0)
    trainer, _ = fit(config, vals=[3.0, 2.0, 2.5], stop=lambda: next(answers))
    other = Trainer(Scripted(), Endless(), config, lambda: 9.0)
    other.load_state_dict(trainer.state_dict())
    assert (other.step, other.tokens, other.best_val, other.best_step) == (6, 42, 2.0, 4)
    assert nn.functional.mse_loss(other.best["W"], trainer.best["W"]) == 0
    list(other.fit())
    assert other.step == 20
