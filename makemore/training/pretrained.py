"""Start training from pretrained weights instead of random ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from makemore.corpus.splits import Corpus
from makemore.corpus.text import Text
from makemore.errors import UserError
from makemore.models import MODELS
from makemore.models.base import LanguageModel
from makemore.runs.run import load
from makemore.runtime.files import require_finite
from makemore.settings import ModelConfig, Recipe
from makemore.tokenizers import Tokenizer

FINE_TUNE_LR_SCALE = 0.3
"""Fine-tuning learning rate as a fraction of the recipe's rate."""


@dataclass(frozen=True, kw_only=True)
class PretrainedModel:
    """Weights to start training from, with their settings and tokenizer."""

    settings: ModelConfig
    weights: dict[str, Tensor]
    tokenizer: Tokenizer
    tokenizer_spec: str
    """The tokenizer's name on the command line."""
    origin: str = ""
    """Source of the weights."""

    @property
    def model(self) -> str:
        """The model's name."""
        return self.settings.name


def read_run(folder: Path) -> PretrainedModel:
    run = load(folder, "cpu")
    return PretrainedModel(
        settings=run.config.model,
        weights=run.model.state_dict(),
        tokenizer=run.tokenizer,
        tokenizer_spec=run.config.tokenizer,
        origin=str(folder),
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


def load_weights(model: LanguageModel, start: PretrainedModel) -> None:
    """Copy the weights, truncating position embeddings to the context. Raises UserError if shapes differ, or
    if a weight isn't finite."""
    weights = dict(start.weights)
    require_finite(weights, start.origin or "the checkpoint")
    if "positions.weight" in weights:
        weights["positions.weight"] = weights["positions.weight"][: model.config.block_size]
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        changed = [
            f"model.{name}={new} (there {old})"
            for (name, new), (_, old) in zip(model.config, start.settings, strict=True)
            if new != old and name != "block_size"
        ]
        reason = ", ".join(changed) or "its weights have other shapes"
        raise UserError(f"these settings don't fit the pretrained model: {reason}; remove them") from None


def fine_tune_recipe(start: PretrainedModel, recipe: Recipe, mode: str) -> Recipe:
    """Recipe for fine-tuning: the starting model's settings and context, with a lower learning rate."""
    kind, optimizer = MODELS.get(start.settings.name), recipe.train.optimizer
    train = recipe.train.replace(
        lr=FINE_TUNE_LR_SCALE * optimizer.lr, matrix_lr=FINE_TUNE_LR_SCALE * optimizer.matrix_lr
    )
    if mode == "text" and not kind.supports_streaming:
        train = train.replace(block_size=start.settings.block_size)  # type: ignore[attr-defined]
    return Recipe(start.settings, train)
