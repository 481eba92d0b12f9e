"""Initialise training from a run or a Hugging Face folder instead of random weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from makemore.corpus.splits import Corpus
from makemore.corpus.text import Text
from makemore.errors import UserError
from makemore.interop.hf_import import ImportedModel, is_hugging_face, read_gpt2
from makemore.models import MODELS
from makemore.models.base import LanguageModel
from makemore.runs.directory import RunDir
from makemore.runs.run import load
from makemore.settings import Recipe, replace_settings

FINE_TUNE_LR_SCALE = 0.3
"""Fine-tuning learning rate as a fraction of the recipe's."""


def model_name_in(folder: Path) -> str:
    """The model in a run or a Hugging Face folder. Raises UserError if there is none."""
    return "transformer" if is_hugging_face(folder) else RunDir(folder).read_config()["model"]["name"]


def read_start(folder: Path, model: str) -> ImportedModel:
    """Read a run or a Hugging Face folder. Raises UserError if it isn't one, or not a ``model``."""
    start = read_gpt2(folder) if is_hugging_face(folder) else _read_run(folder)
    if start.model != model:
        raise UserError(f"{folder} holds a {start.model}, not a {model}")
    return start


def _read_run(folder: Path) -> ImportedModel:
    run = load(folder, "cpu")
    model = run.config["model"]
    return ImportedModel(
        model["name"], model["settings"], run.model.state_dict(), run.tokenizer, run.config["tokenizer"]
    )


def check_encodable(corpus: Corpus, text: Text) -> None:
    """Raise UserError if the starting model's tokenizer can't encode the text."""
    unspellable = (split.unknown_chars_D for split in corpus.splits.values())
    if not any(count_D is not None and count_D.any() for count_D in unspellable):
        return
    chars: set[str] = set()
    for piece in text.pieces():
        chars |= corpus.tokenizer.unknown_chars(piece)
    unknown = sorted(chars - {"\n"} if corpus.mode == "lines" else chars)
    shown = " ".join(map(repr, unknown[:8])) + (f" and {len(unknown) - 8} more" if unknown[8:] else "")
    raise UserError(f"the model to start from has no token for {shown}; remove them from the text")


def load_weights(model: LanguageModel, start: ImportedModel) -> None:
    """Copy the weights, truncating position embeddings to the context. Raises UserError if shapes differ."""
    weights = dict(start.weights)
    if "positions.weight" in weights:
        weights["positions.weight"] = weights["positions.weight"][: model.config.block_size]
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"these settings don't fit the model to start from: {reason}") from None


def fine_tune_recipe(start: ImportedModel, recipe: Recipe, mode: str) -> Recipe:
    """Recipe for fine-tuning: the start's model settings and context, with a lower learning rate."""
    kind = MODELS.get(start.model)
    train = dataclasses.replace(
        recipe.train,
        lr=FINE_TUNE_LR_SCALE * recipe.train.lr,
        matrix_lr=FINE_TUNE_LR_SCALE * recipe.train.matrix_lr,
    )
    if mode == "text" and not kind.supports_streaming:
        train = dataclasses.replace(train, block_size=start.settings["block_size"])
    return Recipe(replace_settings(kind.Config(), start.settings, "model"), train)
