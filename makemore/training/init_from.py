"""Where training may start from in place of random weights: a run, or a Hugging Face folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from makemore.corpus.splits import Corpus
from makemore.corpus.text import Text
from makemore.errors import UserError
from makemore.interop.hf_import import Foreign, is_hugging_face, read_gpt2
from makemore.models import MODELS
from makemore.models.base import LanguageModel
from makemore.runs.directory import RunDir
from makemore.runs.run import load
from makemore.settings import Recipe, override

RATE = 0.3
"""Of a recipe's learning rates: what was learned is worth keeping."""


def model_name(folder: Path) -> str:
    """The rung that stands in a run or a Hugging Face folder. Raises UserError where there is none."""
    return "transformer" if is_hugging_face(folder) else RunDir(folder).read_config()["model"]["name"]


def read_start(folder: Path, model: str) -> Foreign:
    """Model and tokenizer of a run or a Hugging Face folder.

    Raises UserError where there is neither, or another rung than ``model``.
    """
    start = read_gpt2(folder) if is_hugging_face(folder) else _of_run(folder)
    if start.model != model:
        raise UserError(f"{folder} holds a {start.model}, not a {model}")
    return start


def _of_run(folder: Path) -> Foreign:
    run = load(folder, "cpu")
    kept = run.config["model"]
    return Foreign(
        kept["name"], kept["settings"], run.model.state_dict(), run.tokenizer, run.config["tokenizer"]
    )


def refuse_unspellable(corpus: Corpus, text: Text) -> None:
    """Raises UserError for a text with characters that the model to start from has no token for."""
    lost = (split.unspellable_D for split in corpus.splits.values())
    if not any(split_D is not None and split_D.any() for split_D in lost):
        return
    found: set[str] = set()
    for piece in text.pieces():
        found |= corpus.tokenizer.unspellable(piece)
    unknown = sorted(found - {"\n"} if corpus.mode == "lines" else found)
    shown = " ".join(map(repr, unknown[:8])) + (f" and {len(unknown) - 8} more" if unknown[8:] else "")
    raise UserError(f"the model to start from has no token for {shown}; leave them out of the text")


def begin_with(model: LanguageModel, start: Foreign) -> None:
    """Copy the weights; a shorter context keeps the first positions.

    Raises UserError where the model has other sizes.
    """
    weights = dict(start.weights)
    if "positions.weight" in weights:
        weights["positions.weight"] = weights["positions.weight"][: model.config.block_size]
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"these settings don't fit the model to start from: {reason}") from None


def started_recipe(start: Foreign, recipe: Recipe, mode: str) -> Recipe:
    """The start's own model, trained gently, in rows as long as its context."""
    kind = MODELS.get(start.model)
    train = dataclasses.replace(
        recipe.train, lr=RATE * recipe.train.lr, matrix_lr=RATE * recipe.train.matrix_lr
    )
    if mode == "text" and not kind.streams:
        train = dataclasses.replace(train, block_size=start.settings["block_size"])
    return Recipe(override(kind.Config(), start.settings, "model"), train)
