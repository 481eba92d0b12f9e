"""How large steps are, against what they change."""

from __future__ import annotations

import re

import numpy as np

from makemore.inspection.figures import new_figure
from makemore.inspection.subject import Picture, Subject, Update, Verdict

SMALL, LARGE = -4.5, -1.0
"""log10 of ratios that are worth a word."""
ENOUGH = 40
"""Steps: matrices that begin at zero move by much of what they are in the first ones."""
CAPTION = (
    "The first steps of training, taken again: each step's change of a matrix, as a share of its values "
    "(standard deviations, log10). About a thousandth a step, the dashed line, is a good pace for AdamW; "
    "Muon takes larger steps. Far below, a layer learns too slowly; far above, it forgets what it knew. "
    "Like matrices of all layers have one colour."
)


def draw(subject: Subject) -> Picture | None:
    """None where no steps were taken again."""
    updates = [u for u in subject.updates if np.isfinite(u.ratio_S).any()]
    if not updates:
        return None
    kinds = list(dict.fromkeys(kind_of(u.name) for u in updates))
    figure = new_figure(9, max(4.5, 0.17 * len(kinds) + 1.5))
    axes = figure.add_subplot()
    named: set[str] = set()
    for update in updates:
        kind = kind_of(update.name)
        nth = kinds.index(kind)
        axes.plot(
            np.arange(1, len(update.ratio_S) + 1),
            np.log10(update.ratio_S),
            "-" if nth < 10 else "--",
            linewidth=1.2,
            color=f"C{nth % 10}",
            label=kind if kind not in named else None,
        )
        named.add(kind)
    axes.axhline(-3, color="black", linestyle="--", linewidth=1.2, label="a thousandth")
    axes.set_xlabel("step")
    axes.set_ylabel("change of a step / values (log10)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=7)
    return Picture("updates", "Updates against data", CAPTION, figure, judge(updates))


def kind_of(name: str) -> str:
    """A parameter's name with a star for the number of its layer: one colour for all layers."""
    return re.sub(r"^(\w+)\.\d+\.", r"\1.*.", name)


def judge(updates: list[Update]) -> list[Verdict]:
    """Matrices whose steps are very small or very large, over the last quarter of what was seen."""
    steps = max((len(update.ratio_S) for update in updates), default=0)
    if steps < ENOUGH:
        return [Verdict("note", f"the first {steps} steps are too few to judge how large they are")]
    paces = {}
    for update in updates:
        late = update.ratio_S[-(len(update.ratio_S) // 4) :]
        late = late[np.isfinite(late) & (late > 0)]
        if len(late):
            paces[update.name] = float(np.median(np.log10(late)))
    slow = {name: pace for name, pace in paces.items() if pace < SMALL}
    fast = {name: pace for name, pace in paces.items() if pace > LARGE}
    verdicts = [
        Verdict("warning", f"{_list(found)} a step: too {size} a rate")
        for found, size in ((slow, "small"), (fast, "large"))
        if found
    ]
    if paces and not verdicts:
        low, high = min(paces.values()), max(paces.values())
        least, most = f"10^{low:.1f}", f"10^{high:.1f}"
        said = f"between {least} and {most}" if least != most else f"about {most}"
        verdicts.append(Verdict("good", f"steps are {said} of the weights"))
    return verdicts


def _list(paces: dict[str, float]) -> str:
    """The matrix that moves most, and how many others there are."""
    most = max(paces, key=paces.__getitem__)
    others = f" and {len(paces) - 1} more matrices move by up to" if len(paces) > 1 else " moves by"
    return f"{most}{others} 10^{paces[most]:.1f}"
