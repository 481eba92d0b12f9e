"""Checkpoints of nanoGPT (``ckpt.pt``) and of makemore.py (``model.pt``). Both are pickles, read by
PyTorch's restricted reader, which knows tensors and plain values and calls nothing."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from makemore.errors import UserError
from makemore.interop.gpt2_import import GPT2_TOKENS, from_gpt2, with_rows
from makemore.interop.hf_import import Foreign
from makemore.tokenizers import Tokenizer, fit_tokenizer
from makemore.tokenizers.char import CharTokenizer

MAKEMORE_HEADS = 4
"""What makemore.py takes unless told; its file doesn't say."""
NEVER = 30.0
"""About how far below zero a logit is put that should never win."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What is in the file. Raises UserError where it is none, or holds more than tensors and plain
    values."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files that are refused below
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} isn't a checkpoint of tensors and plain values alone; nothing else is read, "
            "for it could run code"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} can't be read as a PyTorch checkpoint: {type(error).__name__}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, no checkpoint")
    return found


def is_nanogpt(found: Mapping[str, Any]) -> bool:
    return "model_args" in found and "model" in found


def is_makemore_transformer(found: Mapping[str, Any]) -> bool:
    return "transformer.wte.weight" in found


def from_nanogpt(found: Mapping[str, Any], text: Iterable[str]) -> Foreign:
    """A nanoGPT checkpoint: of characters (of ``text``, in pieces, that it was trained on) or of GPT-2's
    tokens. Its GELU is exact and ours GPT-2's approximation, which moves logits by a thousandth or so.

    Raises UserError where the text's characters aren't as many as the model's.
    """
    arguments = found["model_args"]
    if "n_head" not in arguments:
        raise UserError("this is no checkpoint of nanoGPT's: its model_args have no n_head")
    settings, weights = from_gpt2(found["model"], {"n_head": arguments["n_head"]}, transposed=False)
    rows = len(weights["embedding.weight"])
    if rows > GPT2_TOKENS:
        tokenizer = fit_tokenizer("tiktoken:gpt2:full", [])
        order = [GPT2_TOKENS, *range(GPT2_TOKENS)]
        return Foreign("transformer", settings, with_rows(weights, order), tokenizer, "tiktoken:gpt2:full")
    tokenizer = _alphabet(text, rows)
    newline = tokenizer.alphabet.find("\n")
    weights = _with_boundary(weights, max(newline, 0))
    return Foreign("transformer", settings | {"tie": False}, weights, tokenizer, "char")


def from_makemore(found: Mapping[str, Any], text: Iterable[str], n_head: int = MAKEMORE_HEADS) -> Foreign:
    """A makemore.py transformer or bigram of the names in ``text``; token 0 is our boundary.

    Raises UserError for another of its models.
    """
    if set(found) == {"logits"}:
        tokenizer = _alphabet(text, len(found["logits"]) - 1)
        return Foreign("bigram", {}, {"W": found["logits"].float()}, tokenizer, "char")
    if not is_makemore_transformer(found):
        raise UserError("of makemore.py's models its transformer and its bigram can be read; this is another")
    settings, weights = from_gpt2(found, {"n_head": n_head}, transposed=False)
    tokenizer = _alphabet(text, len(weights["embedding.weight"]) - 1)
    return Foreign("transformer", settings, weights, tokenizer, "char")


def _alphabet(text: Iterable[str], size: int) -> CharTokenizer:
    tokenizer: Tokenizer = fit_tokenizer("char", text)
    assert isinstance(tokenizer, CharTokenizer)
    if len(tokenizer.alphabet) != size:
        raise UserError(
            f"the model knows {size} characters, and this text has {len(tokenizer.alphabet)}; "
            "name the text it was trained on"
        )
    return tokenizer


def _with_boundary(weights: dict[str, Tensor], newline: int) -> dict[str, Tensor]:
    """A row 0 for the boundary, which nanoGPT hasn't: read as the newline, and never predicted.

    Never predicted: the last normalisation's bias gets a part at right angles to every row of the
    head, which only the boundary's own row sees, and sees as a very low logit.
    """
    embedding, head = weights["embedding.weight"], weights["head.weight"]
    scale, bias = weights["norm.weight"], weights["norm.bias"]
    if len(head) >= head.shape[1]:
        raise UserError("the model has as many characters as its width, and no room for the boundary")
    beside = torch.linalg.svd(head.double(), full_matrices=True).Vh[-1]
    # Far beyond what normalised activations reach, so that the logit is nearly constant.
    length = 10 * float((scale.abs().max() * head.shape[1] ** 0.5 + bias.norm()).double())
    row = (-NEVER / length * beside).float()
    return weights | {
        "embedding.weight": torch.cat([embedding[newline : newline + 1], embedding]),
        "head.weight": torch.cat([row[None], head]),
        "norm.bias": bias + (length * beside).float(),
    }
