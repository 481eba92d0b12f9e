"""Loss curves: initial loss, convergence and overfitting."""

from __future__ import annotations

import math
from typing import Any

from makemore.evaluation.scoring import estimate_loss
from makemore.inspection.figures import BLUE, DASHED, GREEN, GREY, ORANGE, new_figure
from makemore.inspection.subject import Finding, Picture, Subject

MIN_CHANGE = 0.01
"""Smallest change worth reporting, in nats per token."""
MAX_GAP = 0.15
"""Gap between val and train, as a fraction of val, above which to warn of memorisation."""
GAP_TOKENS = 20_000
"""Tokens of train and of val on which the gap between them is measured."""
CAPTION = (
    "Loss in nats per token over training: logged train averages in grey, smoothed in blue, val in orange; "
    "the star marks the saved weights. The dashed line is ln V, the loss of uniform guessing, where "
    "training should start. Train is logged while the weights change and with dropout, if any, so val may be "
    "below it; the findings compare both with the saved weights and without dropout."
)


def plot(subject: Subject) -> Picture | None:
    """Plot the loss curves. Returns None for models that aren't trained step by step."""
    steps, losses = _points(subject.records, "loss")
    if len(steps) < 2:
        return None
    figure = new_figure(8, 4.5)
    axes = figure.add_subplot()
    axes.plot(steps, losses, color=GREY, linewidth=0.8, alpha=0.7, label="train, as logged")
    axes.plot(steps, smoothed(losses), color=BLUE, linewidth=2, label="train, smoothed")
    val_steps, vals = _points(subject.records, "val")
    if vals:
        axes.plot(val_steps, vals, "o-", color=ORANGE, markersize=4, linewidth=1.2, label="val")
        best = vals.index(min(vals))
        axes.plot(val_steps[best], vals[best], "*", color=GREEN, markersize=15, label="saved: best on val")
    uniform = math.log(subject.model.vocab_size)
    axes.axhline(uniform, label=f"ln {subject.model.vocab_size}: uniform", **DASHED)
    all_losses = [*losses, *vals]
    top = min(max(all_losses), 2 * uniform)
    low, high = min(all_losses), max(top, uniform)
    axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    findings = [
        *interpret_start(subject.records, subject.model.vocab_size),
        *interpret_end(subject),
        *interpret_gap(subject, final_mean(losses)),
    ]
    return Picture("losses", "Loss", CAPTION, figure, findings)


def smoothed(losses: list[float]) -> list[float]:
    """Centred moving average, without lag: over a tenth of all values, fewer near the ends."""
    max_radius = max(1, len(losses) // 20)
    result = []
    for i in range(len(losses)):
        radius = min(max_radius, i // 4, len(losses) - 1 - i)
        window = losses[i - radius : i + radius + 1]
        result.append(sum(window) / len(window))
    return result


def final_mean(losses: list[float]) -> float:
    """Mean of the last twentieth of the values."""
    tail = losses[-max(1, len(losses) // 20) :]
    return sum(tail) / len(tail)


def interpret_start(records: list[dict[str, Any]], vocab_size: int) -> list[Finding]:
    """Compare the first loss with uniform guessing."""
    steps, losses = _points(records, "loss")
    if not steps or steps[0] != 1:
        return []
    first, uniform = losses[0], math.log(vocab_size)
    text = f"the first loss was {first:.3f}; uniform guessing gives ln {vocab_size} = {uniform:.3f}"
    if first > 1.1 * uniform:
        advice = "the initial model is overconfident; scale down its output layer"
        return [Finding("warning", f"{text}: {advice}")]
    if first < 0.9 * uniform:
        return [Finding("note", f"{text}: training didn't start from random weights")]
    return [Finding("good", f"{text}: a good initialisation")]


def interpret_end(subject: Subject) -> list[Finding]:
    """Report overfitting, unfinished training or convergence."""
    steps, vals = _points(subject.records, "val")
    if len(vals) < 3:
        return []
    best_eval = vals.index(min(vals))
    best, last, train = vals[best_eval], vals[-1], final_mean(_points(subject.records, "loss")[1])
    decayed, step = lr_decayed(subject.records), f"step {steps[best_eval]:,}"
    if best_eval < len(vals) - 1 and last - best > MIN_CHANGE and train < best:
        rise = f"val rose by {last - best:.3f} by the end; the best weights were kept"
        return [Finding("warning", f"overfitting since {step}: {rise}")]
    if final_decrease(steps, vals) > MIN_CHANGE:
        reason = " as the learning rate decayed" if decayed else ""
        return [Finding("note", f"val was still falling at the end{reason}: more steps may help")]
    text = f"val converged at {best:.3f} by {step}"
    if best_eval == len(vals) - 1 and decayed:
        text += ", as the learning rate decayed; a longer run may go lower"
    return [Finding("good", text)]


def interpret_gap(subject: Subject, logged: float) -> list[Finding]:
    """Compare the saved weights' losses on train and val, measured alike; ``logged``: train's last losses."""
    if subject.train is None or subject.val is None or not len(subject.val.tokens_N):
        return []
    train, val = (estimate_loss(subject.model, split, GAP_TOKENS) for split in (subject.train, subject.val))
    losses = f"with the saved weights and without dropout, train is {train:.3f} and val {val:.3f}"
    findings = []
    if logged - val > MIN_CHANGE:
        dropout = " and with dropout" if getattr(subject.model.config, "dropout", 0) else ""
        text = f"train, logged while the weights changed{dropout}, ended at {logged:.3f}, above val; {losses}"
        findings.append(Finding("note", text))
    if val - train > MAX_GAP * val:
        text = f"{losses}: memorisation; more text, dropout or a smaller model may help"
        findings.append(Finding("warning", text))
    return findings


def final_decrease(steps: list[int], vals: list[float]) -> float:
    """Decrease of val over the last tenth of training, in nats."""
    start = steps[-1] * 0.9
    earlier = [val for step, val in zip(steps, vals, strict=True) if step <= start]
    return min(earlier) - min(vals) if earlier else 0.0


def lr_decayed(records: list[dict[str, Any]]) -> bool:
    """Whether the learning rate fell below a tenth of its peak; val then flattens in any case."""
    rates = _points(records, "lr")[1]
    return bool(rates) and rates[-1] < 0.1 * max(rates)


def _points(records: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of a logged metric."""
    points = [(record["step"], float(record[key])) for record in records if key in record]
    return [step for step, _ in points], [value for _, value in points]
