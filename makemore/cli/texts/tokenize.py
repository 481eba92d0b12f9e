"""``makemore tokenize``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from makemore.cli.options import ENCODING, INPUT, JSON, MODE, SKIP_DAMAGED, TOKENIZER, given
from makemore.cli.terminal import echo, print_json
from makemore.runtime.characters import escape_control_chars

if TYPE_CHECKING:
    from makemore.corpus.tokenization import Tokenization

STYLES = (
    "black on bright_cyan",
    "black on bright_yellow",
    "black on bright_green",
    "black on bright_magenta",
)


def command(
    input: list[str] = INPUT,
    tokenizer: str = TOKENIZER,
    n: int = typer.Option(300, "-n", min=0, help="Number of tokens to show, from the start."),
    ids: bool = typer.Option(False, "--ids", help="Print only the ids of these tokens."),
    mode: str | None = MODE,
    encoding: str | None = ENCODING,
    skip_damaged: bool | None = SKIP_DAMAGED,
    json: bool = JSON,
) -> None:
    """Show how a text is split into tokens."""
    from makemore.cli.progress import ProgressObserver
    from makemore.corpus.tokenization import tokenize

    corpus = given(mode=mode, encoding=encoding, skip_damaged=skip_damaged)
    result = tokenize(input, tokenizer, corpus, n, ProgressObserver().encoding)
    if json:
        print_json(result.as_dict())
    elif ids:
        echo(" ".join(map(str, result.ids)))
    else:
        _show(result)


def _show(result: Tokenization) -> None:
    from rich.text import Text

    from makemore.cli.console import Console

    console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
    text = Text()
    for i, piece in enumerate(result.pieces):
        # Without colours, separate tokens with a bar.
        bar = "" if console.is_terminal or not i or piece == "\n" else "|"
        text.append(bar).append(escape_control_chars(_visible(piece)), STYLES[i % len(STYLES)])
    console.print(text)
    for note in result.notes:
        console.print(note)
    console.print(
        f"{result.tokens:,} tokens of {result.chars:,} characters, {result.bytes:,} bytes: "
        f"{result.tokens / result.chars:.4f} tokens/character, {result.bytes / result.tokens:.3f} bytes/token"
    )
    console.print(f"vocabulary: {result.used:,} of {result.vocab_size:,} tokens occur; most frequent:")
    frequent = "  ".join(f"{_visible(piece, '')} {count:,}" for piece, count in result.frequent)
    console.print(frequent)


def _visible(piece: str, line_end: str = "\n") -> str:
    return piece.replace("\t", "→").replace("\n", f"⏎{line_end}")
