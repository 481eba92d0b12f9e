"""Training progress, printed to stderr."""

from __future__ import annotations

import contextlib
import math
import textwrap
import time
from typing import TYPE_CHECKING

from rich.control import Control
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.segment import ControlType

from makemore.cli.console import Console
from makemore.report.numbers import with_unit
from makemore.settings import Settings
from makemore.settings.base import flatten
from makemore.training.observers import Observer

if TYPE_CHECKING:
    from makemore.evaluation.baseline import Baseline
    from makemore.evaluation.memorization import MemorizationReport
    from makemore.training.plan import Plan
    from makemore.training.records import MemberResult, TrainRecord
    from makemore.types import Score


def settings_line(config: Settings) -> str:
    """Format settings that aren't None as ``key=value``."""
    values = flatten(config.model_dump(exclude={"name"})).items()
    return " ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in values if v is not None)


def plan_line(plan: Plan) -> str:
    """Describe in one line what is trained: model, size, device, steps and passes."""
    train = plan.train
    if train.optimizer.name == "none":
        return f"{plan.model_name}: one pass over the text, counting"
    precision = str(plan.precision).removeprefix("torch.")
    compiled = ", compiled" if plan.compiled else ", in C" if plan.native else ""
    budgets = [f"{train.steps:,} step{'s' * (train.steps != 1)}"] if train.steps else []
    budgets += [f"{train.max_time:g} s"] if train.max_time else []
    text = (
        f"{plan.model_name}: {plan.model.n_parameters():,} parameters on {plan.device} "
        f"({precision}{compiled}); {' or '.join(budgets)}, {train.data.batch_tokens:,} tokens per step"
    )
    if train.steps:
        passes = train.steps * train.data.batch_tokens / len(plan.corpus.splits["train"].tokens_N)
        text += f", {passes:,.{0 if passes >= 100 else 1}f} passes over the text"
    return text


def estimate_line(plan: Plan) -> str:
    """Say how the val loss during training differs from the final score."""
    n_val, n = len(plan.corpus.splits["val"].tokens_N), plan.train.eval_tokens
    if n < n_val:
        return f"val≈ is an estimate on {n:,} of {n_val:,} tokens; the final score covers more"
    return "val≈ is an estimate with shorter contexts than the final score"


def in_brackets(bounds: tuple[float, float], sign: str = "") -> str:
    """Format an interval."""
    low, high = bounds
    if math.isinf(high) and low < high:
        return "[too short for an interval]"
    return f"[{low:{sign}.4f}, {high:{sign}.4f}]"


def score_line(score: Score) -> str:
    """Format a score in one line."""
    from makemore.types import MIN_COPIED

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
    if score.copied >= MIN_COPIED:
        text += f"\n{score.copied:.0%} of {score.split} occurs verbatim in train, in long passages"
    if score.not_in_train is not None:
        unseen = score.not_in_train
        text += f"\n{unseen.split} in train: {unseen.nll:.4f} nats/token ({unseen.tokens:,} tokens)"
    return text


def baseline_line(baseline: Baseline) -> str:
    """Format the score of the count model that a neural network is compared with."""
    limit = f", on {baseline.limited_to}" if baseline.limited_to else ""
    return f"count, for comparison: {baseline.nll:.4f} nats/token (order {baseline.order}{limit})"


def member_line(member: MemberResult) -> str:
    """Format a member's own score, and its mean weight."""
    alone = "" if member.nll is None else f"{member.nll:.4f} nats/token alone, "
    return f"  {member.name}: {alone}{member.weight:.0%} of the weights, trained for {member.seconds:.0f} s"


def memorisation_line(report: MemorizationReport) -> str:
    """Summarise memorisation in samples and in held-out text in one line."""
    samples, held_out = report.samples, report.held_out
    if samples.verbatim is not None:
        suffix = f" (held-out: {held_out.verbatim:.1%})" if held_out else ""
        return f"{samples.texts:,} samples: {samples.verbatim:.1%} are training lines{suffix}"
    suffix = f" (held-out: {held_out.copied_mean:.1f}, at most {held_out.copied_max})" if held_out else ""
    return (
        f"{samples.texts:,} samples: longest run copied from train, in characters: "
        f"{samples.copied_mean:.1f} on average, at most {samples.copied_max}{suffix}"
    )


class ProgressObserver(Observer):
    """Print a line per evaluation, and show a progress bar on a terminal."""

    def __init__(self, label: str = "", *, quiet: bool = False, verbose: bool = False) -> None:
        """``label``: name of one run of several, which prints fewer lines and no samples."""
        self.console = Console(stderr=True, highlight=False)
        self.label, self.quiet, self.verbose = label, quiet, verbose
        self.wants_samples = not (label or quiet)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._loss: float | None = None
        self._described = ""
        self._next_line = 0.0
        """Progress at which to print a line without an evaluation."""
        self._encoding_start: tuple[float, int] | None = None
        """Time of the first report, and how much was encoded by then."""
        self._encoding_reported = time.perf_counter()

    def note(self, text: str, wrap: bool = True) -> None:
        """Print a message; ``wrap``: on a terminal, between words (False for a command to be copied)."""
        # Training continues even if the terminal is gone or the log's disk is full.
        with contextlib.suppress(OSError):
            soft_wrap = not (wrap and self.console.is_terminal)
            self.console.print(text, markup=False, emoji=False, soft_wrap=soft_wrap)

    def encoding(self, done: int, total: int) -> None:
        now = time.perf_counter()
        self._encoding_start = self._encoding_start or (now, done)
        if self.quiet or now - self._encoding_reported < (0.2 if self.console.is_terminal else 10.0):
            return
        seconds, encoded = now - self._encoding_start[0], done - self._encoding_start[1]
        line = f"encoding: {done / total:4.0%}"
        if encoded:
            rate = encoded / max(seconds, 1e-9)
            line += f", {rate / 1e6:.0f}M characters/s, {(total - done) / rate:.0f} s left"
        self.console.print(line, end="   " if self.console.is_terminal else "\n", markup=False)
        if self.console.is_terminal:
            self.console.control(Control(ControlType.CARRIAGE_RETURN))
        self._encoding_reported = now

    def start(self, plan: Plan) -> None:
        if self.quiet:
            return
        self.close()
        self._describe(plan)
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

    def _describe(self, plan: Plan) -> None:
        import torch

        from makemore.runtime.determinism import reproducibility_line

        corpus, split = plan.corpus, plan.corpus.splits["train"]
        text = (
            f"{plan.source.name}: {corpus.mode} mode ({corpus.reason}); {plan.tokenizer_spec} tokens, "
            f"vocabulary {corpus.tokenizer.vocab_size}; train {len(split.tokens_N):,} tokens "
            f"in {len(split.starts_D):,} document{'s' * (len(split.starts_D) != 1)}"
        )
        if text != self._described:  # auto trains several models on a text
            self.note(text)
            self._described = text
        self.note(plan_line(plan))
        if self.verbose:
            self.note(f"model: {settings_line(plan.model.config)}")
            self.note(f"train: {settings_line(plan.train)}")
        self._next_line = 0.0
        self.note(reproducibility_line(plan.train, plan.device, plan.compiled, torch.get_num_threads()))
        if len(corpus.splits["val"].tokens_N) and plan.train.optimizer.name != "none" and not self.label:
            self.note(estimate_line(plan))

    def record(self, record: TrainRecord) -> None:
        self._loss = record.loss if record.loss is not None else self._loss
        loss = f"  loss {self._loss:.4f}" if self._loss is not None else ""
        val = f"  val≈ {record.val:.4f}" if record.val is not None else ""
        rate = record.tokens_per_second
        step, speed = f"step {record.step:,}", f"  {with_unit(rate)} tokens/s" if rate else ""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=record.progress, metrics=step + loss + speed)
        evaluated = record.val is not None and not self.label
        if not self.quiet and (evaluated or record.progress >= self._next_line):
            next_line = min(record.progress + (0.25 if self.label else 0.1), 1.0)
            self._next_line = next_line if record.progress < 1 else math.inf
            best = "  best" if record.val is not None and record.improved else ""
            self.note(f"{record.progress:4.0%}  {step}{loss}{val}{speed}  {record.elapsed:.0f} s{best}")

    def samples(self, texts: list[str]) -> None:
        self.note(textwrap.indent(" | ".join(texts), "      "))

    def scoring(self, done: int, total: int) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done / max(total, 1), metrics="scoring")

    def close(self) -> None:
        """Remove the progress bar; the printed lines remain."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
