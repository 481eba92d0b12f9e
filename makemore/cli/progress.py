"""Training progress, printed to stderr."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from makemore.cli.options import escape_control_chars
from makemore.report.numbers import with_unit
from makemore.training.observers import Observer

if TYPE_CHECKING:
    from makemore.evaluation.memorization import MemorizationReport
    from makemore.training.plan import Plan
    from makemore.training.records import TrainRecord
    from makemore.types import Score


def settings_line(config: Any) -> str:
    """Format a dataclass's settings that aren't None as ``key=value``."""
    values = dataclasses.asdict(config).items()
    return " ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in values if v is not None)


def recipe_line(plan: Plan) -> str:
    """Describe how a plan trains; count models have no recipe."""
    if plan.train.optimizer == "none":
        return "one pass over the text, counting"
    precision = str(plan.precision).removeprefix("torch.")
    compiled = ", compiled" if plan.compiled else ", in C" if plan.native else ""
    return f"{settings_line(plan.train)} (on {plan.device}, {precision}{compiled})"


def in_brackets(bounds: tuple[float, float], sign: str = "") -> str:
    """Format an interval."""
    low, high = bounds
    if math.isinf(high) and low < high:
        return "[too short for an interval]"
    return f"[{low:{sign}.4f}, {high:{sign}.4f}]"


def score_line(score: Score) -> str:
    """Format a score in one line."""
    interval = in_brackets(score.ci95_bits_per_char)
    text = (
        f"{score.split}: {score.nll:.4f} nats/token, perplexity {score.perplexity:.3f}, "
        f"{score.bits_per_char:.4f} bits/char {interval}, {score.bits_per_byte:.4f} bits/byte "
        f"({score.tokens:,} tokens, {score.chars:,} chars)"
    )
    if score.unknown_chars:
        text += f"; {score.unknown_chars:,} characters outside the alphabet, scored with a fixed probability"
    if score.all_in_train:
        text += f"\nevery document of {score.split} is in train: the score measures memory"
    if score.not_in_train is not None:
        unseen = score.not_in_train
        text += f"\n{unseen.split} in train: {unseen.nll:.4f} nats/token ({unseen.tokens:,} tokens)"
    return text


def memorisation_line(report: MemorizationReport) -> str:
    """Summarise memorisation in samples and in held-out text in one line."""
    samples, held_out = report.samples, report.held_out
    if samples.verbatim is not None:
        suffix = (
            "" if held_out is None or held_out.verbatim is None else f" (held-out: {held_out.verbatim:.1%})"
        )
        return f"{samples.texts:,} samples: {samples.verbatim:.1%} are training lines{suffix}"
    suffix = (
        "" if held_out is None else f" (held-out: {held_out.copied_mean:.1f}, at most {held_out.copied_max})"
    )
    return (
        f"{samples.texts:,} samples: longest run copied from train, in characters: "
        f"{samples.copied_mean:.1f} on average, at most {samples.copied_max}{suffix}"
    )


class ProgressObserver(Observer):
    """Show a progress bar on a terminal; elsewhere print occasional lines."""

    def __init__(self, label: str = "") -> None:
        self.console = Console(stderr=True, soft_wrap=True, highlight=False)
        self.label = label
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._val: float | None = None
        self._loss: float | None = None
        self._reported = -1
        self._encoding_start = 0.0
        self._encoding_reported = time.perf_counter()

    def note(self, text: str) -> None:
        # Training continues even if the terminal is gone or the log's disk is full.
        with contextlib.suppress(OSError):
            self.console.print(escape_control_chars(text), markup=False, emoji=False)

    def encoding(self, done: int, total: int) -> None:
        now = time.perf_counter()
        self._encoding_start = self._encoding_start or now
        if now - self._encoding_reported < (0.2 if self.console.is_terminal else 10.0):
            return
        rate = done / max(now - self._encoding_start, 1e-9)
        left = f", {(total - done) / rate:.0f} s left" if rate else ""
        line = f"encoding: {done / total:4.0%}, {rate / 1e6:.0f}M characters/s{left}"
        self.console.print(line, end="   \r" if self.console.is_terminal else "\n", markup=False)
        self._encoding_reported = now

    def start(self, plan: Plan) -> None:
        import torch

        from makemore.runtime.determinism import reproducibility_line

        corpus, split = plan.corpus, plan.corpus.splits["train"]
        self.note(
            f"{plan.source.name}: {corpus.mode} mode ({corpus.reason}); {plan.tokenizer_spec} tokens, "
            f"vocabulary {corpus.tokenizer.vocab_size}; train {len(split.tokens_N):,} tokens "
            f"in {len(split.starts_D):,} document{'s' * (len(split.starts_D) != 1)}"
        )
        # A count model has no parameters before it has counted.
        size = "" if plan.train.optimizer == "none" else f"{plan.model.n_parameters():,} parameters; "
        self.note(f"{plan.model_name}: {size}{settings_line(plan.model.config)}")
        self.note(f"recipe: {recipe_line(plan)}")
        self.note(reproducibility_line(plan.train, plan.device, plan.compiled, torch.get_num_threads()))
        if self.console.is_terminal:
            columns = (
                TextColumn(self.label or plan.model_name),
                BarColumn(),
                TextColumn("{task.percentage:3.0f}%"),
                TextColumn("{task.fields[metrics]}"),
                TimeRemainingColumn(elapsed_when_finished=True),
            )
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._task = self._bar.add_task("", total=1.0, metrics="")
            self._bar.start()

    def record(self, record: TrainRecord) -> None:
        self._val = record.val if record.val is not None else self._val
        self._loss = record.loss if record.loss is not None else self._loss
        metrics = [f"step {record.step:,}"]
        metrics += [f"loss {self._loss:.4f}"] if self._loss is not None else []
        metrics += [f"val {self._val:.4f}"] if self._val is not None else []
        metrics += [f"{with_unit(record.tokens_per_second)} tokens/s"]
        line = "  ".join(metrics)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=record.progress, metrics=line)
        elif int(record.progress * 20) > self._reported:
            self._reported = int(record.progress * 20)
            self.note(f"{record.progress:4.0%}  {line}  {record.elapsed:.0f} s")

    def scoring(self, done: int, total: int) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done / max(total, 1), metrics="scoring")

    def close(self) -> None:
        """Remove the progress bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
