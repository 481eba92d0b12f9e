"""Loss curves: where it began, how it fell, when to have stopped."""

from __future__ import annotations

import math
from typing import Any

from makemore.inspection.figures import BLUE, GREEN, GREY, ORANGE, new_figure
from makemore.inspection.subject import Picture, Subject, Verdict

AT_LEAST = 0.01
"""Nats per token that are worth a word."""
CAPTION = (
    "Loss in nats per token over training: each logged average of train in grey, smoothed in blue, val in "
    "orange, the weights that were kept at the star. The dashed line is ln V, the loss of one who knows "
    "nothing: training should begin there. Val above train is what was learned by heart."
)


def draw(subject: Subject) -> Picture | None:
    """None for what isn't trained step by step."""
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
        axes.plot(val_steps[best], vals[best], "*", color=GREEN, markersize=15, label="kept: best on val")
    nothing = math.log(subject.vocab_size)
    axes.axhline(
        nothing, color="black", linestyle="--", linewidth=1, label=f"ln {subject.vocab_size}: guessing"
    )
    everything = [*losses, *vals]
    top = min(max(everything), 2 * nothing)
    low, high = min(everything), max(top, nothing)
    axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    verdicts = [*judge_start(subject.records, subject.vocab_size), *judge_end(subject)]
    return Picture("losses", "Loss", CAPTION, figure, verdicts)


def smoothed(losses: list[float]) -> list[float]:
    """The mean of each value and its neighbours, a tenth of all in the middle, fewer at the steep beginning;
    it doesn't lag."""
    reach = max(1, len(losses) // 20)
    result = []
    for i in range(len(losses)):
        near = min(reach, i // 4, len(losses) - 1 - i)  # as many on either side
        part = losses[i - near : i + near + 1]
        result.append(sum(part) / len(part))
    return result


def ending(losses: list[float]) -> float:
    """The mean of the last twentieth."""
    part = losses[-max(1, len(losses) // 20) :]
    return sum(part) / len(part)


def judge_start(records: list[dict[str, Any]], vocab_size: int) -> list[Verdict]:
    """The first step's loss beside that of guessing."""
    steps, losses = _points(records, "loss")
    if not steps or steps[0] != 1:
        return []
    first, nothing = losses[0], math.log(vocab_size)
    beside = f"the first loss was {first:.3f}, where ln {vocab_size} = {nothing:.3f} is that of guessing"
    if first > 1.1 * nothing:
        return [
            Verdict("warning", f"{beside}: the first weights are too sure; make the output layer quieter")
        ]
    if first < 0.9 * nothing:
        return [Verdict("note", f"{beside}: it began with something known")]
    return [Verdict("good", f"{beside}: it began knowing nothing, as it should")]


def judge_end(subject: Subject) -> list[Verdict]:
    """Whether training went on too long, not long enough, or as it should."""
    steps, vals = _points(subject.records, "val")
    if len(vals) < 3:
        return []
    at = vals.index(min(vals))
    best, last, train = vals[at], vals[-1], ending(_points(subject.records, "loss")[1])
    verdicts = []
    if at < len(vals) - 1 and last - best > AT_LEAST and train < best:
        verdicts.append(
            Verdict(
                "warning",
                f"overfitting since step {steps[at]:,}: val rose by {last - best:.3f} to the end; "
                "the best was kept",
            )
        )
    elif falling(steps, vals) > AT_LEAST:
        more = "val was still falling at the end: more steps would help"
        verdicts.append(Verdict("note", more))
    else:
        rest = f"val came to rest at {best:.3f} by step {steps[at]:,}"
        if at == len(vals) - 1 and ran_out(subject.records):
            rest += ", as the rate ran out; a longer run may go lower"
        verdicts.append(Verdict("good", rest))
    gap = best - train
    if gap > 0.15 * best:
        verdicts.append(
            Verdict(
                "warning",
                f"train ended {gap:.3f} nats below val: learned by heart; more text, dropout or a smaller "
                "model would help",
            )
        )
    return verdicts


def falling(steps: list[int], vals: list[float]) -> float:
    """How much val fell over the last tenth of training, in nats."""
    since = steps[-1] * 0.9
    before = [val for step, val in zip(steps, vals, strict=True) if step <= since]
    return min(before) - min(vals) if before else 0.0


def ran_out(records: list[dict[str, Any]]) -> bool:
    """Whether the learning rate ended far below its height: val comes to rest then in any case."""
    rates = _points(records, "lr")[1]
    return bool(rates) and rates[-1] < 0.1 * max(rates)


def _points(records: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and finite values of a figure, where it was logged."""
    found = [
        (record["step"], record[key])
        for record in records
        if isinstance(record.get(key), float | int) and isinstance(record.get("step"), int)
    ]
    found = [(step, value) for step, value in found if math.isfinite(value)]
    return [step for step, _ in found], [float(value) for _, value in found]
