"""The training loop: yields progress records and decides when to evaluate, save and stop."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from makemore.corpus.loader import Loader
from makemore.errors import UserError
from makemore.models.base import CountModel
from makemore.runtime import distributed
from makemore.runtime.device import get_rng_state, is_out_of_memory, set_rng_state
from makemore.settings import TrainConfig
from makemore.training.learners.base import Learner, Metrics
from makemore.training.learners.gradient import GradientLearner
from makemore.training.learners.guard import NonFiniteError
from makemore.training.records import Evaluation, TrainRecord, divergence_error
from makemore.types import Batch

LOG_INTERVAL = 0.5
N_EVALUATIONS = 20


class Trainer:
    """Trains until the budget or data run out, val loss stops improving, or a stop is requested."""

    def __init__(
        self,
        learner: Learner,
        loader: Loader,
        config: TrainConfig,
        evaluate: Callable[[], float] | None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """``evaluate`` returns val nats per token (None: no val split); ``stop`` is polled every step."""
        self.learner, self.loader, self.config = learner, loader, config
        self.evaluate, self.stop = evaluate, stop
        self._counts = isinstance(learner.model, CountModel)  # large tables: not copied
        self.step = self.tokens = 0
        self.elapsed = 0.0
        self.best_val = math.inf
        self.best_step = 0
        self.evals_since_best = 0
        """Number of evaluations since the best one."""
        self.budget = 1.0
        """Fraction of the configured budget that will be used."""
        self.finished = False
        self.stopped_early = False
        self.interrupted = False
        """Whether a stop was requested; the run can be resumed."""
        self.best: dict[str, Tensor] = {}
        """The best weights so far; if sharded, this rank's shards."""
        self.best_weights = "raw"
        """``raw`` or ``ema``: the kind of weights in ``best``."""
        self._next_evaluation = 1 / N_EVALUATIONS
        self._evaluated_at = -1
        self._eval_seconds = 0.0
        self._saved_at = 0.0
        self.save_interval = config.save_interval
        self._loss_sum: Tensor | None = None
        self._count = 0
        self._new_tokens: Tensor | int = 0
        self._logged_tokens = 0
        self._logged_at = 0.0

    @property
    def progress(self) -> float:
        """Fraction of the effective budget used, in [0, 1]."""
        fractions = [self.loader.progress or 0.0]
        if self.config.steps:
            fractions.append(self.step / self.config.steps)
        if self.config.max_time:
            # Leave time for the final evaluation.
            fractions.append((self.elapsed + self._eval_seconds) / self.config.max_time)
        return min(1.0, max(fractions) / self.budget)

    def fit(self) -> Iterator[TrainRecord]:
        """Train, yielding a record now and then; the caller's time in between counts towards the budget.

        Raises:
            Diverged: the loss or a gradient is not finite.
            UserError: out of memory.
        """
        self._started_at = time.perf_counter() - self.elapsed
        self._logged_at = self._saved_at = self.elapsed
        try:
            yield from self._loop()
            if not self.interrupted:
                self.learner.check()
                self.learner.finish()
                if self.loader.progress is not None and self.loader.progress < 1:
                    self.learner.note = f"the budget ran out after {self.loader.progress:.0%} of the text"
                yield self._end()
        except NonFiniteError as error:
            raise divergence_error(self.config, str(error)) from None

    def _loop(self) -> Iterator[TrainRecord]:
        while self.progress < 1 and not self.stopped_early:
            if distributed.all_reduce_max(self.stop()):
                self.learner.check()
                self.interrupted = True
                self._sync_tokens()
                # Don't log the loss sum yet: a resumed run then logs as if it had not been interrupted.
                yield self._new_record(save=True)
                return
            metrics = self.advance(self.progress)
            if metrics is None:
                return
            if metrics.loss is not None:
                self._loss_sum = metrics.loss if self._loss_sum is None else self._loss_sum + metrics.loss
                self._count += 1
            self._update_elapsed()
            if self._due_for_evaluation():
                yield self._evaluate_and_record()
            elif self.progress < 1 and (self.elapsed - self._logged_at >= LOG_INTERVAL or self.step == 1):
                yield self._record(Evaluation(None, False), save=self._due_for_saving())

    def reopen(self, larger: bool) -> None:
        """Decide whether a finished run continues after loading; ``larger``: its budget was raised."""
        was_stopped_early, self.stopped_early = self.stopped_early, False
        shortened_run_ended = self.budget < 1 <= self.progress
        if shortened_run_ended or (self.config.patience and self.evals_since_best >= self.config.patience):
            self.stopped_early = True
        elif larger or was_stopped_early:
            self.finished = False

    def advance(self, progress: float) -> Metrics | None:
        """Run a step at this progress. Returns None if the data ended; raises UserError if out of memory."""
        micro_batches = self._next_micro_batches()
        if not micro_batches:
            return None
        metrics = self._learn(micro_batches, progress)
        self.step += 1
        self._new_tokens = self._new_tokens + metrics.tokens
        return metrics

    def _next_micro_batches(self) -> list[Batch]:
        """Up to ``train.grad_accum_steps`` micro-batches; fewer at the end of the data."""
        micro_batches: list[Batch] = []
        with contextlib.suppress(StopIteration):
            while len(micro_batches) < self.config.data.grad_accum_steps:
                micro_batches.append(self.loader.next())
        return micro_batches

    def _learn(self, micro_batches: list[Batch], progress: float) -> Metrics:
        try:
            return self.learner.step(micro_batches, self.step, progress)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        raise UserError(
            f"out of memory on {self.learner.model.device} at step {self.step}: lower train.batch_tokens "
            f"({self.config.data.batch_tokens}), raise train.grad_accum_steps "
            f"({self.config.data.grad_accum_steps}), or use "
            "a smaller model (--set model.*); the last saved state is kept"
        )

    def _sync_tokens(self) -> None:
        """Update ``tokens``; synchronises with the device, so call rarely."""
        self.tokens, self._new_tokens = self.tokens + int(self._new_tokens), 0

    def _update_elapsed(self) -> None:
        self.elapsed = distributed.all_reduce_max(time.perf_counter() - self._started_at)

    def _due_for_saving(self) -> bool:
        return self.elapsed - self._saved_at >= self.save_interval

    def _due_for_evaluation(self) -> bool:
        if self.evaluate is None or self._counts or self.progress >= 1:
            return False
        if self.config.eval_interval:
            return self.step % self.config.eval_interval == 0
        return self.progress >= self._next_evaluation

    def evaluate_now(self) -> Evaluation:
        """Evaluate now, and keep the weights if their val loss is the best so far."""
        self.learner.check()
        started = time.perf_counter()
        evaluation = self._evaluate_raw_and_ema()
        self._evaluated_at = self.step
        if evaluation.val is not None:
            self._eval_seconds = distributed.all_reduce_max(time.perf_counter() - started)
            self._schedule_evaluation()
        self.evals_since_best = 0 if evaluation.improved else self.evals_since_best + 1
        return evaluation

    def _schedule_evaluation(self) -> None:
        """Set when to evaluate next; evaluation takes at most about a tenth of the time budget."""
        budget_seconds = self.budget * self.config.max_time if self.config.max_time else math.inf
        self._next_evaluation = self.progress + max(
            1 / N_EVALUATIONS, 10 * self._eval_seconds / budget_seconds
        )

    def _evaluate_raw_and_ema(self) -> Evaluation:
        result = self._evaluate_as("raw")
        ema = self.learner.ema
        if ema is not None and result.val is not None:
            with ema.applied():
                other = self._evaluate_as("ema")
            assert other.val is not None
            result = Evaluation(min(result.val, other.val), result.improved or other.improved, other.val)
        return result

    def _evaluate_as(self, weights: str) -> Evaluation:
        """Evaluate the model's current weights, and keep them if they are the best so far."""
        val = None
        if self.evaluate is not None:
            # Evaluating a sharded model takes every rank.
            participates = distributed.is_main() or self.learner.sharded
            val = distributed.broadcast(self.evaluate() if participates else 0.0)
        if val is not None and math.isnan(val):
            raise divergence_error(self.config, f"val loss is {val} at step {self.step}")
        improved = val is None or val < self.best_val or not self.best
        if improved:
            self.best_val, self.best_step = val if val is not None else math.inf, self.step
            self.best_weights = weights
            state = self.learner.model.state_dict()
            self.best = state if self._counts else {name: tensor.clone() for name, tensor in state.items()}
        return Evaluation(val, improved)

    def _evaluate_and_record(self) -> TrainRecord:
        evaluation = self.evaluate_now()
        self._update_elapsed()
        if self._stalled:
            self._shorten_budget()
        elif self.config.patience and self.evals_since_best >= self.config.patience:
            self.stopped_early = True
        return self._record(evaluation, save=self._due_for_saving())

    @property
    def _stalled(self) -> bool:
        """Val loss stopped improving (for half the patience) while the learning rate can still decay."""
        config = self.config
        decays = config.schedule.shape == "linear" and config.schedule.warmdown_fraction > 0
        can_decay = decays and config.schedule.warmup_steps < self.step and self.progress < 0.9
        return can_decay and 0 < config.patience <= 2 * self.evals_since_best

    def _shorten_budget(self) -> None:
        """Restart from the best weights where decay begins or, if decaying, at half the learning rate."""
        decay_start = 1 - self.config.schedule.warmdown_fraction
        restart_at = decay_start if self.progress < decay_start else (1 + self.progress) / 2
        self.budget *= self.progress / restart_at
        self.evals_since_best = 0
        self._schedule_evaluation()
        self.learner.model.load_state_dict(self.best)
        self.learner.note = (
            f"val loss was best at step {self.best_step:,}: continuing from there at a lower learning rate, "
            f"ending at {self.budget:.0%} of the budget"
        )

    def rollback(self, state: dict[str, Any]) -> None:
        """Roll back to an earlier state at half the learning rate; elapsed time keeps counting."""
        assert isinstance(self.learner, GradientLearner)
        elapsed, scale = self.elapsed, self.learner.optimizers.scale / 2
        self.load_state_dict(state)
        self.elapsed, self.learner.optimizers.scale = elapsed, scale

    def _end(self) -> TrainRecord:
        needs_evaluation = self._evaluated_at != self.step
        evaluation = self.evaluate_now() if needs_evaluation else Evaluation(None, False)
        self._update_elapsed()
        self.finished = True
        self.stopped_early |= self.budget < 1
        return self._record(evaluation, save=True)

    def _record(self, evaluation: Evaluation, save: bool) -> TrainRecord:
        self.learner.check()
        self._sync_tokens()
        loss = None
        if self._loss_sum is not None:
            loss = float(self._loss_sum) / self._count
            if not math.isfinite(loss):
                raise divergence_error(self.config, f"the loss is {loss} by step {self.step}")
            self._loss_sum, self._count = None, 0
        seconds = max(self.elapsed - self._logged_at, 1e-9)
        speed = (self.tokens - self._logged_tokens) / seconds
        self._logged_at, self._logged_tokens = self.elapsed, self.tokens
        if save:
            self._saved_at = self.elapsed
        note, self.learner.note = self.learner.note, ""
        return self._new_record(
            loss=loss,
            val=evaluation.val,
            lr=self.learner.lr,
            tokens_per_second=speed,
            improved=evaluation.improved,
            save=save,
            note=note,
            val_ema=evaluation.val_ema,
        )

    def _new_record(self, **measurements: Any) -> TrainRecord:
        return TrainRecord(
            step=self.step, tokens=self.tokens, elapsed=self.elapsed, progress=self.progress, **measurements
        )

    _SCALARS = (
        "step",
        "tokens",
        "elapsed",
        "best_val",
        "best_step",
        "best_weights",
        "evals_since_best",
        "budget",
        "finished",
        "stopped_early",
        "_next_evaluation",
        "_evaluated_at",
        "_eval_seconds",
        "_count",
    )
    _KEYS = {"evals_since_best": "worse"}
    """Keys in saved states where they differ from the attribute's name."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that resuming needs: weights, optimizer state, data position, random states."""
        return {
            # Count models choose some of their settings when they finish.
            "settings": self.learner.model.config.model_dump(),
            "trainer": {self._KEYS.get(name, name): getattr(self, name) for name in self._SCALARS},
            "sum": self._loss_sum,
            "best": {} if self._counts else self.best,
            "learner": self.learner.state_dict(),
            "loader": self.loader.state_dict(),
            "random": get_rng_state(self.learner.model.device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self._SCALARS:
            # States from earlier versions lack newer attributes.
            default = getattr(self, name)
            value = state["trainer"].get(self._KEYS.get(name, name), default)
            if type(value) is not type(default):
                raise TypeError(f"{name} has the wrong type: {value!r}")
            setattr(self, name, value)
        self._loss_sum, self.best = state["sum"], self.learner.shard_weights(state["best"])
        are_tensors = all(isinstance(name, str) and isinstance(t, Tensor) for name, t in self.best.items())
        if not are_tensors or not isinstance(self._loss_sum, Tensor | None):
            raise TypeError("the best weights or the loss sum are not tensors")
        self._logged_tokens, self._new_tokens = self.tokens, 0
        self.learner.load_state_dict(state["learner"])
        self.best = self.learner.model.state_dict() if self._counts and self.finished else self.best
        self.loader.load_state_dict(state["loader"])
        set_rng_state(state["random"], self.learner.model.device)
