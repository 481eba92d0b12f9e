"""Print a sample coloured by token probability, with one line per token."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.text import Text

from makemore.cli.console import Console
from makemore.runtime.characters import escape_control_chars

if TYPE_CHECKING:
    from makemore.sampling.probabilities import TokenProb

COLOURS = ((0.5, "green"), (0.2, "cyan"), (0.05, "yellow"), (0.0, "red"))
"""(minimum probability, colour), highest first."""


def colour(p: float) -> str:
    return next(name for min_p, name in COLOURS if p >= min_p)


def print_probs(prompt: str, tokens: list[TokenProb]) -> None:
    """Print the coloured text, then each token's probability, entropy and alternatives."""
    console = Console(file=sys.stdout, soft_wrap=True, highlight=False)
    text = Text(escape_control_chars(prompt), style="dim")
    for token in tokens:
        text.append(escape_control_chars(token.text), style=colour(token.p))
    console.print(text, end="" if text.plain.endswith("\n") else "\n")
    for token in tokens:
        line = Text(f"{token.text!r:>8} ")
        line.append(f"{token.p:7.4f}", style=colour(token.p))
        line.append(f"  {token.entropy:5.2f} bits   ")
        line.append("  ".join(f"{alternative!r} {p:.3f}" for alternative, p in token.top), style="dim")
        console.print(line)
