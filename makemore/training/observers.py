"""Observers of a training run, with loggers for TensorBoard and Weights & Biases."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

from makemore.errors import UserError
from makemore.training.plan import Plan, run_record
from makemore.training.records import TrainRecord

CURVES = {
    "loss": "loss/train",
    "val": "loss/val",
    "val_ema": "loss/val of averaged weights",
    "lr": "learning rate",
    "tokens_per_second": "tokens a second",
}
"""Curve name of each logged field of a ``TrainRecord``."""


class Observer:
    """Receives the events of a training run and ignores them; subclasses handle them."""

    wants_samples = False
    """Whether to sample the model at a quarter, half and three quarters of training."""

    def note(self, text: str) -> None:
        """A message for the user."""

    def start(self, plan: Plan) -> None:
        """Training starts; ``auto`` trains two models, perhaps at the same time."""

    def record(self, record: TrainRecord) -> None:
        """The measurements of a step."""

    def samples(self, texts: list[str]) -> None:
        """Samples of the model as it is now."""

    def encoding(self, done: int, total: int) -> None:
        """Progress of tokenization, in characters."""

    def scoring(self, done: int, total: int) -> None:
        """Progress of the final score, in tokens."""

    def close(self) -> None:
        """No more events follow."""


def _forward(event: str) -> Callable[..., None]:
    def forward(self: MultiObserver, *arguments: Any) -> None:
        for observer in self.observers:
            getattr(observer, event)(*arguments)

    return forward


class MultiObserver(Observer):
    """Forwards every event to several observers."""

    def __init__(self, *observers: Observer) -> None:
        self.observers = observers
        self.wants_samples = any(observer.wants_samples for observer in observers)

    note, start, record = _forward("note"), _forward("start"), _forward("record")
    samples, encoding = _forward("samples"), _forward("encoding")
    scoring, close = _forward("scoring"), _forward("close")


def _import_logger(module: str, extra: str) -> Any:
    """Import an optional package, which may also be damaged. Raises UserError if that fails."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"--{extra} needs {extra}; run: pip install 'makemore[{extra}]'") from None


class TensorBoard(Observer):
    """Writes event files to the run's ``tensorboard`` folder; see ``tensorboard --logdir checkpoints``."""

    def __init__(self) -> None:
        """Raises UserError if TensorBoard isn't installed."""
        self._writer_class: Any = _import_logger("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self._writer: Any = None
        self._folder = ""

    def start(self, plan: Plan) -> None:
        self.close()
        self._writer = None
        self._folder = str(plan.folder.path / "tensorboard")

    def record(self, record: TrainRecord) -> None:
        if self._writer is None:
            # Drop events past this step from an interrupted run: they are logged again.
            self._writer = self._writer_class(self._folder, purge_step=record.step)
        for name, value in curves(record).items():
            self._writer.add_scalar(name, value, record.step)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WandB(Observer):
    """Logs to Weights & Biases; by default offline (``WANDB_MODE``), in the run's ``wandb`` folder.

    Upload an offline run with ``wandb sync``.
    """

    def __init__(self) -> None:
        """Raises UserError if wandb isn't installed."""
        self._wandb: Any = _import_logger("wandb", "wandb")
        self._run: Any = None

    def start(self, plan: Plan) -> None:
        if self._run is not None:
            self._run.finish()
        plan.folder.path.mkdir(parents=True, exist_ok=True)
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", "makemore"),
            name=plan.folder.path.name,
            dir=str(plan.folder.path),
            config=run_record(plan).model_dump(include={"model", "tokenizer", "corpus", "train"}),
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings={"quiet": True},
        )

    def record(self, record: TrainRecord) -> None:
        self._run.log({**curves(record), "tokens": record.tokens}, step=record.step)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
            self._wandb.teardown()  # stopping the service flushes the file


def curves(record: TrainRecord) -> dict[str, float]:
    """Measured values of a record, by curve name."""
    values = {name: getattr(record, field) for field, name in CURVES.items()}
    return {name: value for name, value in values.items() if value is not None}
