"""Sizes, colours and token labels shared by all figures."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

from matplotlib import font_manager, ft2font
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from makemore.runtime.characters import clip
from makemore.tokenizers import Tokenizer

BLUE, ORANGE, GREEN, RED, GREY, DARK = "#0072b2", "#d55e00", "#009e73", "#b00020", "#999999", "#555555"
"""A palette for colour-blind readers (Okabe & Ito 2008). In the dark theme, pages show
negatives of the pictures, so colour maps begin, or centre, at white."""
DASHED: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1}
"""Style of reference lines."""
VISIBLE = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"}
BOUNDARY = "¶"
LEGEND = (
    "¶ is the boundary between documents, ␣ a space, ⏎ a newline, ⇥ a tab; a number like 1F389 is the code "
    "point of a character that can't be drawn"
)
WIDTH = 11.3
"""Page width in inches; wider figures are scaled down, labels included."""
MAX_LABEL_LENGTH = 6
FONT = ft2font.FT2Font(font_manager.findfont("DejaVu Sans"))


def new_figure(width: float, height: float) -> Figure:
    """Make a figure of a size in inches, with a layout that makes room for labels."""
    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def png(figure: Figure) -> bytes:
    out = io.BytesIO()
    # Figure.savefig draws the figure twice; this draws it once, with the same layout.
    FigureCanvasAgg(figure).print_png(out, metadata={"Software": None})
    return out.getvalue()


def _visible(char: str) -> str:
    char = VISIBLE.get(char, char)
    drawable = char.isprintable() and FONT.get_char_index(ord(char))
    return char if drawable else f"{ord(char):X}"


def label(tokenizer: Tokenizer, token: int) -> str:
    """A token's text with visible whitespace, shortened for an axis."""
    if token == tokenizer.boundary_id:
        return BOUNDARY
    text = "".join(_visible(char) for char in tokenizer.decode([token]))
    text = clip(text, MAX_LABEL_LENGTH)
    return text.replace("$", r"\$")


def labels(tokenizer: Tokenizer, tokens: Iterable[int]) -> list[str]:
    return [label(tokenizer, int(token)) for token in tokens]


def token_axis(axis: Any, names: list[str], size: float = 8) -> None:
    """Label an axis with one token per integer tick; long labels on an x axis are rotated."""
    axis.set_ticks(range(len(names)), names, fontsize=size)
    axis.set_tick_params(length=0)
    if axis.axis_name == "x" and max(map(len, names), default=0) > 2:
        axis.set_tick_params(labelrotation=90)
