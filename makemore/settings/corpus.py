"""Settings of the corpus."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from makemore.errors import UserError
from makemore.settings.base import SECTION_CLASSES, CommaSeparated, Settings


class CorpusConfig(Settings):
    """Settings for cutting a text into documents and splits."""

    mode: Literal["auto", "lines", "text"] = Field(
        "auto", description="lines: one document per line; text: a single document; auto: detected"
    )
    split: CommaSeparated = Field(
        "auto", description="fractions for train, val and test, such as 0.8,0.1,0.1"
    )
    encoding: str = Field(
        "utf-8", description="character encoding of the input; utf-8:replace replaces invalid bytes"
    )
    dedupe: bool = Field(False, description="lines mode: put equal lines into the same split")
    skip_damaged: bool = Field(False, description="leave out files that can't be decompressed or decoded")


SECTION_CLASSES["corpus"] = CorpusConfig


def split_fractions(spec: str, mode: str) -> tuple[float, float, float]:
    """Fractions for train, val and test; ``auto`` is 80/10/10 for lines and 90/5/5 for text.

    Raises UserError unless they are three numbers ≥ 0 that sum to 1.
    """
    if spec == "auto":
        return (0.8, 0.1, 0.1) if mode == "lines" else (0.9, 0.05, 0.05)
    try:
        shares = tuple(float(part) for part in spec.split(","))
    except ValueError:
        shares = ()
    if len(shares) != 3 or not all(0 <= s <= 1 for s in shares) or abs(sum(shares) - 1) > 1e-6:
        raise UserError(f"--split {spec!r}: give three fractions that sum to 1, such as 0.8,0.1,0.1")
    if shares[0] == 0:
        raise UserError(f"--split {spec!r} leaves nothing to train on; give train a fraction above 0")
    return shares
