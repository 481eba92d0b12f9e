"""The only training loop: a generator of records that owns budget, cadence, best and last."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from makemore.corpus.loader import Loader
from makemore.errors import UserError
from makemore.models.base import CountModel
from makemore.runtime import distributed as parallel
from makemore.runtime.device import is_out_of_memory, random_state, restore_random
from makemore.settings import TrainConfig
from makemore.training.learners.gradient import GradientLearner, Learner, Metrics
from makemore.training.learners.guard import NotFinite
from makemore.types import Batch


class Diverged(UserError):  # noqa: N818 - what has happened
    """The loss, a gradient or val is no finite number: nothing of that step is in any file."""


LOG_SECONDS = 0.5
EVALUATIONS = 20


@dataclass(frozen=True)
class Record:
    """What happened since the last record. Losses in nats per token, rates per second."""

    step: int
    loss: float | None
    val: float | None
    """Of the weights that would be kept: the better of raw and averaged ones."""
    lr: float
    tokens: int
    """Targets trained on so far."""
    tokens_per_second: float
    elapsed: float
    progress: float
    improved: bool = False
    save: bool = False
    """The state is worth saving now."""
    note: str = ""
    val_ema: float | None = None
    """Of the averaged weights, where an average is kept."""


class Evaluation(NamedTuple):
    """Val in nats per token (None without a val split), whether it is the best so far, val of the
    averaged weights."""

    val: float | None
    improved: bool
    val_ema: float | None = None


class Trainer:
    """Trains until the budget is used, val stops improving, data end, or someone asks to stop."""

    def __init__(
        self,
        learner: Learner,
        loader: Loader,
        config: TrainConfig,
        evaluate: Callable[[], float] | None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """``evaluate``: val in nats per token, None without a val split; ``stop``: asked every step."""
        self.learner, self.loader, self.config = learner, loader, config
        self.evaluate, self.stop = evaluate, stop
        self.step = 0
        self.tokens = 0
        self.elapsed = 0.0
        self.best_val = math.inf
        self.best_step = 0
        self.worse = 0
        """Evaluations since the best."""
        self.budget = 1.0
        """Share of the budget that will be used."""
        self.finished = False
        self.stopped_early = False
        self.stopped = False
        """Someone asked to stop; the run can go on from here."""
        self.best: dict[str, Tensor] = {}
        self.best_weights = "raw"
        """Or ``ema``: which weights the best are."""
        self._next_evaluation = 1 / EVALUATIONS
        self._evaluated_at = -1
        self._eval_seconds = 0.0
        self._saved_at = 0.0
        self._sum: Tensor | None = None
        self._count = 0
        self._new_tokens: Tensor | int = 0
        self._logged_tokens = 0
        self._logged_at = 0.0

    @property
    def progress(self) -> float:
        """Share used of as much of the budget as is going to be, in [0, 1]."""
        shares = [self.loader.progress or 0.0]
        if self.config.steps:
            shares.append(self.step / self.config.steps)
        if self.config.max_time:
            # The last evaluation belongs to the budget.
            shares.append((self.elapsed + self._eval_seconds) / self.config.max_time)
        return min(1.0, max(shares) / self.budget)

    def fit(self) -> Iterator[Record]:
        """Train on. Yields a record now and then; what the caller does in between is timed too.

        Raises Diverged where the loss or a gradient stops being a number, UserError where memory runs out.
        """
        self._begun = time.perf_counter() - self.elapsed
        self._logged_at = self._saved_at = self.elapsed
        try:
            yield from self._loop()
            if not self.stopped:
                self.learner.check()
                self.learner.finish()
                if self.loader.progress is not None and self.loader.progress < 1:
                    self.learner.note = f"the budget has ended after {self.loader.progress:.0%} of the text"
                yield self._end()
        except NotFinite as error:
            raise self._diverged(str(error)) from None

    def _loop(self) -> Iterator[Record]:
        while self.progress < 1 and not self.stopped_early:
            if parallel.highest(self.stop()):
                self.learner.check()
                self.stopped = True
                self._count_tokens()
                # Nothing is logged for a step that has been: resuming goes on as if undisturbed.
                yield Record(
                    self.step, None, None, 0.0, self.tokens, 0.0, self.elapsed, self.progress, save=True
                )
                return
            metrics = self.advance(self.progress)
            if metrics is None:
                return
            if metrics.loss is not None:
                self._sum = metrics.loss if self._sum is None else self._sum + metrics.loss
                self._count += 1
            self._tick()
            if self._due_for_evaluation():
                yield self._evaluated()
            elif self.progress < 1 and (self.elapsed - self._logged_at >= LOG_SECONDS or self.step == 1):
                yield self._record(Evaluation(None, False), save=self._due_for_saving())

    def carry_on(self, larger: bool) -> None:
        """After a state was loaded: whether a run that had ended goes on; ``larger``: its budget is now."""
        was_early, self.stopped_early = self.stopped_early, False
        ended = self.budget < 1 <= self.progress
        if ended or (self.config.patience and self.worse >= self.config.patience):
            self.stopped_early = True
        elif larger or was_early:
            self.finished = False

    def advance(self, progress: float) -> Metrics | None:
        """One step, told how much of the budget is used; None where data end.

        Raises UserError where memory runs out.
        """
        batches = self._batches()
        if not batches:
            return None
        metrics = self._learn(batches, progress)
        self.step += 1
        self._new_tokens = self._new_tokens + metrics.tokens
        return metrics

    def _batches(self) -> list[Batch]:
        """A step's parts; fewer, or none, where data end."""
        parts: list[Batch] = []
        with contextlib.suppress(StopIteration):
            while len(parts) < self.config.accumulate:
                parts.append(self.loader.next())
        return parts

    def _learn(self, batches: list[Batch], progress: float) -> Metrics:
        try:
            return self.learner.step(batches, self.step, progress)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        raise UserError(
            f"out of memory on {self.learner.model.device} at step {self.step}: lower train.batch_tokens "
            f"({self.config.batch_tokens}), raise train.accumulate ({self.config.accumulate}), or lower "
            "the model's sizes (--set model.*); the last state saved is kept"
        )

    def _count_tokens(self) -> None:
        """Bring the count up to date; this waits for the device, so only now and then."""
        self.tokens, self._new_tokens = self.tokens + int(self._new_tokens), 0

    def _tick(self) -> None:
        self.elapsed = parallel.highest(time.perf_counter() - self._begun)

    def _diverged(self, what: str) -> Diverged:
        config = self.config
        lower = [f"train.lr={config.lr / 3:.2g}"]
        if config.optimizer == "muon":
            lower.append(f"train.matrix_lr={config.matrix_lr / 3:.2g}")
        if not config.clip:
            lower.append("train.clip=1")
        return Diverged(
            f"{what}: training diverged; lower the learning rate, such as with "
            f"--set {' --set '.join(lower)}, or add --on-divergence rollback; "
            "the best model and the last state saved are kept"
        )

    def _due_for_saving(self) -> bool:
        return self.elapsed - self._saved_at >= self.config.save_interval

    def _due_for_evaluation(self) -> bool:
        if self.evaluate is None or isinstance(self.learner.model, CountModel) or self.progress >= 1:
            return False
        if self.config.eval_interval:
            return self.step % self.config.eval_interval == 0
        return self.progress >= self._next_evaluation

    def judge(self) -> Evaluation:
        """Val now, and whether it is the best; keeps the best weights."""
        self.learner.check()
        begun = time.perf_counter()
        # A sharded model takes all processes to compute.
        asked = parallel.is_main() or self.learner.sharded
        outcome = self._judgement() if asked else Evaluation(None, False)
        outcome = parallel.from_main(outcome)
        self._evaluated_at = self.step
        if outcome.val is not None:
            self._eval_seconds = parallel.highest(time.perf_counter() - begun)
            self._plan_evaluation()
        self.worse = 0 if outcome.improved else self.worse + 1
        return outcome

    def _plan_evaluation(self) -> None:
        """The next one; a slow one comes less often: it may take a tenth of the time."""
        seconds = self.budget * self.config.max_time if self.config.max_time else math.inf
        self._next_evaluation = self.progress + max(1 / EVALUATIONS, 10 * self._eval_seconds / seconds)

    def _judgement(self) -> Evaluation:
        outcome = self._judge_as("raw")
        average = self.learner.average
        if average is not None and outcome.val is not None:
            with average.applied():
                ema = self._judge_as("ema")
            assert ema.val is not None
            outcome = Evaluation(min(outcome.val, ema.val), outcome.improved or ema.improved, ema.val)
        return outcome

    def _judge_as(self, weights: str) -> Evaluation:
        """Val of the weights that the model has now; keeps them if they are the best."""
        val = None if self.evaluate is None else self.evaluate()
        if val is not None and math.isnan(val):
            raise self._diverged(f"val is {val} at step {self.step}")
        improved = val is None or val < self.best_val or not self.best
        if improved:
            self.best_val, self.best_step = val if val is not None else math.inf, self.step
            self.best_weights = weights
            self.best = {k: v.detach().clone() for k, v in self.learner.weights().items()}
        return Evaluation(val, improved)

    def _evaluated(self) -> Record:
        outcome = self.judge()
        self._tick()
        if self._stalled:
            self._shorten()
        elif self.config.patience and self.worse >= self.config.patience:
            self.stopped_early = True
        return self._record(outcome, save=self._due_for_saving())

    @property
    def _stalled(self) -> bool:
        """Val stopped improving at a rate that can still fall; half the patience is enough to tell."""
        config = self.config
        falls = config.schedule == "linear" and config.decay_share > 0
        can_fall = falls and config.warmup_steps < self.step and self.progress < 0.9
        return can_fall and 0 < config.patience <= 2 * self.worse

    def _shorten(self) -> None:
        """From the best weights again, nearer the end: where the rate begins to fall, or is half as high."""
        falls = 1 - self.config.decay_share
        place = falls if self.progress < falls else (1 + self.progress) / 2
        self.budget *= self.progress / place
        self.worse = 0
        self._plan_evaluation()
        self.learner.load_weights(parallel.from_main({name: t.cpu() for name, t in self.best.items()}))
        self.learner.note = (
            f"val was best at step {self.best_step:,}: going on from there at a lower rate, "
            f"within {self.budget:.0%} of the budget"
        )

    def go_back(self, state: dict[str, Any]) -> None:
        """To an earlier state, at half the learning rate; time that was used stays used."""
        assert isinstance(self.learner, GradientLearner)
        elapsed, scale = self.elapsed, self.learner.optimizers.scale / 2
        self.load_state_dict(state)
        self.elapsed, self.learner.optimizers.scale = elapsed, scale

    def _end(self) -> Record:
        again = self._evaluated_at != self.step
        outcome = self.judge() if again else Evaluation(None, False)
        self._tick()
        self.finished = True
        self.stopped_early |= self.budget < 1
        return self._record(outcome, save=True)

    def _record(self, outcome: Evaluation, save: bool) -> Record:
        self.learner.check()
        self._count_tokens()
        loss = None
        if self._sum is not None:
            loss = float(self._sum) / self._count
            if not math.isfinite(loss):
                raise self._diverged(f"the loss is {loss} by step {self.step}")
            self._sum, self._count = None, 0
        seconds = max(self.elapsed - self._logged_at, 1e-9)
        speed = (self.tokens - self._logged_tokens) / seconds
        self._logged_at, self._logged_tokens = self.elapsed, self.tokens
        if save:
            self._saved_at = self.elapsed
        note, self.learner.note = self.learner.note, ""
        parts = getattr(getattr(self.learner, "optimizers", None), "parts", [])
        lr = parts[-1].param_groups[0]["lr"] if parts else 0.0
        return Record(
            self.step,
            loss,
            outcome.val,
            lr,
            self.tokens,
            speed,
            self.elapsed,
            self.progress,
            outcome.improved,
            save,
            note,
            outcome.val_ema,
        )

    _SCALARS = (
        "step",
        "tokens",
        "elapsed",
        "best_val",
        "best_step",
        "best_weights",
        "worse",
        "budget",
        "finished",
        "stopped_early",
        "_next_evaluation",
        "_evaluated_at",
        "_eval_seconds",
        "_count",
    )

    def state_dict(self) -> dict[str, Any]:
        """All that resuming needs: what was learned, the place in the data, random states."""
        return {
            # Counting chooses some of its settings at its end.
            "settings": dataclasses.asdict(self.learner.model.config),
            "trainer": {name: getattr(self, name) for name in self._SCALARS},
            "sum": self._sum,
            "best": self.best,
            "learner": self.learner.state_dict(),
            "loader": self.loader.state_dict(),
            "random": random_state(self.learner.model.device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self._SCALARS:
            # A state of an earlier version lacks what has come since.
            before, value = getattr(self, name), state["trainer"].get(name, getattr(self, name))
            if type(value) is not type(before):
                raise TypeError(f"{name} is {value!r}")
            setattr(self, name, value)
        self._sum, self.best = state["sum"], state["best"]
        named = all(isinstance(name, str) and isinstance(t, Tensor) for name, t in self.best.items())
        if not named or not isinstance(self._sum, Tensor | None):
            raise TypeError("the best weights or the sum of losses are no tensors")
        self._logged_tokens, self._new_tokens = self.tokens, 0
        self.learner.load_state_dict(state["learner"])
        self.loader.load_state_dict(state["loader"])
        restore_random(state["random"], self.learner.model.device)
