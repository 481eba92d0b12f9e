"""Budgets, cadence, early stopping and divergence of the one training loop."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from makemore.errors import UserError
from makemore.models.bigram import Bigram, BigramConfig
from makemore.settings import TrainConfig
from makemore.training.learners.base import Learner, Metrics
from makemore.training.optimizers.ema import EMA
from makemore.training.request import TrainRequest
from makemore.training.train import TrainingInterrupted, train
from makemore.training.trainer import Trainer
from makemore.types import Batch


class Scripted(Learner):
    """Losses as told; no learning but a counter in the weights."""

    def __init__(self, losses=None):
        super().__init__(Bigram(BigramConfig(), 3, 0))
        self.losses = losses

    def step(self, batches, step, progress):
        with torch.no_grad():
            self.model.W.fill_(step + 1)
        loss = self.losses[step] if self.losses else 1.0
        return Metrics(torch.tensor(loss), None, torch.tensor(7 * len(batches)))


class Watched(Scripted):
    """Keeps what each step was told, and the weights that it found."""

    def __init__(self):
        super().__init__()
        self.progress, self.weight = [], []

    def step(self, batches, step, progress):
        self.progress.append(progress)
        self.weight.append(self.model.W[0, 0].item())
        return super().step(batches, step, progress)


class Endless:
    progress = None

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


@pytest.mark.parametrize("shape", [{"schedule": "constant"}, {"warmdown_fraction": 0.0, "warmup_steps": 0}])
def test_training_at_a_rate_that_never_falls_stops_where_val_no_longer_improves(shape):
    config = TrainConfig(steps=100, eval_interval=2, patience=3, **shape)
    trainer, _ = fit(config, vals=[2.0, 1.0, 1.5, 1.6, 1.7, 1.8])
    assert trainer.stopped_early
    assert (trainer.step, trainer.best_step) == (10, 4)


def test_where_val_stalls_at_the_full_rate_the_rate_falls_early_from_the_best_weights():
    config = TrainConfig(steps=100, eval_interval=2, patience=3, warmup_steps=0, warmdown_fraction=0.6)
    vals = iter([2.0, 1.0, 1.5, 1.6, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    learner = Watched()
    trainer = Trainer(learner, Endless(), config, lambda: next(vals))
    records = list(trainer.fit())
    # Eight steps are two fifths of twenty.
    assert trainer.step == records[-1].step == 20
    assert trainer.stopped_early
    assert learner.progress == pytest.approx([i / 100 for i in range(8)] + [i / 20 for i in range(8, 20)])
    assert learner.weight[7:10] == [7.0, 4.0, 9.0]  # the best were those of step 4
    assert any("from there at a lower learning rate" in record.note for record in records)
    assert (trainer.best_step, trainer.best_val) == (20, 0.4)


def test_where_val_stalls_while_the_rate_falls_it_is_halved():
    config = TrainConfig(steps=20, eval_interval=2, patience=4, warmup_steps=0, warmdown_fraction=1.0)
    learner, vals = Watched(), iter([3.0, 2.9, 3.0, 3.1, 2.8, 2.7, 2.6])
    trainer = Trainer(learner, Endless(), config, lambda: next(vals))
    list(trainer.fit())
    # Stalled at step 8 of 20, two fifths: seven tenths of what is now eleven.
    assert learner.progress[7:9] == pytest.approx([7 / 20, 0.7])
    assert learner.weight[8] == 4.0
    assert trainer.step == 12
    assert trainer.stopped_early


def test_a_val_that_stalls_at_the_very_end_changes_nothing():
    config = TrainConfig(steps=20, eval_interval=2, patience=4, warmup_steps=0)
    trainer, _ = fit(config, vals=[3.0, 2.9, 2.8, 2.7, 2.6, 2.5, 2.4, 2.5, 2.5, 2.5])
    assert (trainer.budget, trainer.step, trainer.stopped_early) == (1.0, 20, False)


def test_time_is_a_budget_too(monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr("makemore.training.trainer.time.perf_counter", lambda: float(next(clock)))
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


def test_a_step_takes_its_parts_and_data_may_end_within():
    trainer, records = fit(TrainConfig(max_time=3600.0, grad_accum_steps=3), loader=Endless(8))
    assert trainer.step == 3
    assert records[-1].tokens == 8 * 7


class Failing(Scripted):
    """Runs out of memory at its third step."""

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
def test_out_of_memory_names_what_to_lower(error):
    trainer = Trainer(Failing(error), Endless(), TrainConfig(steps=9, batch_tokens=512), None)
    with pytest.raises(UserError, match=r"on cpu at step 2: lower train.batch_tokens \(512\)"):
        list(trainer.fit())


def test_other_errors_are_not_mistaken_for_memory():
    trainer = Trainer(Failing(RuntimeError("shapes differ")), Endless(), TrainConfig(steps=9), None)
    with pytest.raises(RuntimeError, match="shapes differ"):
        list(trainer.fit())


class Averaged(Scripted):
    """Weights 1, 2, 3 … and their average."""

    def __init__(self):
        super().__init__()
        self.average = EMA(self.model, 0.5)

    def step(self, batches, step, progress):
        metrics = super().step(batches, step, progress)
        self.average.update()
        return metrics


@pytest.mark.parametrize(
    ("target", "weights", "kept"), [(3.0, "raw", 3.0), (17 / 7, "ema", 17 / 7)], ids=["raw", "ema"]
)
def test_the_better_of_raw_and_averaged_weights_is_kept(target, weights, kept):
    learner = Averaged()

    def evaluate():
        return abs(learner.model.W[0, 0].item() - target) + 1

    trainer = Trainer(learner, Endless(), TrainConfig(steps=3), evaluate)
    last = list(trainer.fit())[-1]
    assert trainer.best_weights == weights
    assert trainer.best["W"][0, 0].item() == pytest.approx(kept)
    assert last.val == pytest.approx(1.0)
    assert last.val_ema == pytest.approx(abs(17 / 7 - target) + 1)
    assert learner.model.W[0, 0] == 3  # training goes on with the raw ones


def test_a_state_from_before_a_setting_existed_resumes():
    trainer, _ = fit(TrainConfig(steps=4), vals=[2.0] * 9)
    state = trainer.state_dict()
    del state["trainer"]["best_weights"]
    other = Trainer(Scripted(), Endless(), TrainConfig(steps=4), None)
    other.load_state_dict(state)
    assert (other.best_weights, other.step) == ("raw", 4)


# --- through the whole program -------------------------------------------------------------------


@pytest.fixture
def prose(tmp_path):
    path = tmp_path / "prose.txt"
    path.write_text("the cat sat on the mat. the dog ate the hat. " * 120, encoding="utf-8")
    return path


def request_for(path, model, out, **train):
    settings = {"steps": 12, "eval_interval": 5, "compile": "no", "dtype": "float32", **train}
    small = ("model.n_layer=1", "model.n_embd=32") if model == "transformer" else ()
    return TrainRequest(str(path), model, out=out, train=settings, settings=small)


@pytest.mark.parametrize("model", ["transformer", "lstm", "wavenet"])
def test_resuming_with_parts_and_an_average_is_exact(model, prose, tmp_path):
    settings = {"grad_accum_steps": 2, "ema": 0.9, "batch_tokens": 512}
    whole = train(request_for(prose, model, tmp_path / "whole", **settings))
    asked = iter([False] * 7 + [True] * 1000)
    with pytest.raises(TrainingInterrupted):
        train(request_for(prose, model, tmp_path / "cut", **settings), stop=lambda: next(asked))
    again = train(TrainRequest(str(prose), model, out=tmp_path / "cut", resume=True))
    assert again.score.nats == whole.score.nats
    assert (again.steps, again.tokens) == (whole.steps, whole.tokens)
    assert again.used == whole.used


def test_parts_do_not_change_what_is_learned(prose, tmp_path):
    scores = [
        train(
            request_for(prose, "transformer", tmp_path / str(n), grad_accum_steps=n, batch_tokens=1024)
        ).score.nll
        for n in (1, 4)
    ]
    assert scores[1] == pytest.approx(scores[0], abs=1e-4)


def test_a_result_says_what_was_used(prose, tmp_path):
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
