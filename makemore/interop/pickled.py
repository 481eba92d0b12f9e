"""Convert checkpoints of nanoGPT (``ckpt.pt``) and makemore.py (``model.pt``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from makemore.errors import UserError
from makemore.interop.gpt2 import GPT2_TOKENS, from_gpt2, reorder_vocabulary, strip_prefixes
from makemore.models.bigram import BigramConfig
from makemore.tokenizers import Tokenizer, fit_tokenizer
from makemore.tokenizers.char import CharTokenizer
from makemore.training.pretrained import PretrainedModel

MAKEMORE_HEADS = 4
"""Default of makemore.py; its checkpoints don't store the number of heads."""
IMPOSSIBLE_LOGIT = 30.0
"""Approximately minus the logit of a token that should never be predicted."""


def is_nanogpt(checkpoint: Mapping[str, Any]) -> bool:
    return "model_args" in checkpoint and "model" in checkpoint


def is_makemore_transformer(checkpoint: Mapping[str, Any]) -> bool:
    return any(str(name).endswith("transformer.wte.weight") for name in checkpoint)


def from_nanogpt(checkpoint: Mapping[str, Any], text: Iterable[str]) -> PretrainedModel:
    """Import a nanoGPT checkpoint. ``text``: its training text in pieces, for a character-level model.

    nanoGPT's GELU is exact and ours is GPT-2's approximation, which changes logits by about 0.001.
    Raises UserError if the text has another number of characters than the model.
    """
    arguments = checkpoint["model_args"]
    if "n_head" not in arguments:
        raise UserError("this isn't a nanoGPT checkpoint: its model_args have no n_head")
    settings, weights = from_gpt2(checkpoint["model"], arguments["n_head"], transposed=False)
    rows = len(weights["embedding.weight"])
    if rows > GPT2_TOKENS:
        tokenizer = fit_tokenizer("tiktoken:gpt2:full", [])
        order = [GPT2_TOKENS, *range(GPT2_TOKENS)]
        return PretrainedModel(
            settings=settings,
            weights=reorder_vocabulary(weights, order),
            tokenizer=tokenizer,
            tokenizer_spec="tiktoken:gpt2:full",
        )
    tokenizer = _fit_alphabet(text, rows)
    newline = tokenizer.alphabet.find("\n")
    weights = with_boundary(weights, max(newline, 0))
    return PretrainedModel(
        settings=settings.replace(tie=False), weights=weights, tokenizer=tokenizer, tokenizer_spec="char"
    )


def from_makemore(
    checkpoint: Mapping[str, Any], text: Iterable[str], n_head: int = MAKEMORE_HEADS
) -> PretrainedModel:
    """Import a makemore.py transformer or bigram trained on ``text``; its token 0 becomes our boundary.

    Raises UserError for other makemore.py models.
    """
    if {strip_prefixes(str(name)) for name in checkpoint} == {"logits"}:
        (logits,) = checkpoint.values()
        tokenizer = _fit_alphabet(text, len(logits) - 1)
        return PretrainedModel(
            settings=BigramConfig(), weights={"W": logits.float()}, tokenizer=tokenizer, tokenizer_spec="char"
        )
    if not is_makemore_transformer(checkpoint):
        raise UserError("only makemore.py's transformer and bigram can be imported; this is another model")
    settings, weights = from_gpt2(checkpoint, n_head, transposed=False)
    tokenizer = _fit_alphabet(text, len(weights["embedding.weight"]) - 1)
    return PretrainedModel(settings=settings, weights=weights, tokenizer=tokenizer, tokenizer_spec="char")


def _fit_alphabet(text: Iterable[str], size: int) -> CharTokenizer:
    tokenizer: Tokenizer = fit_tokenizer("char", text)
    assert isinstance(tokenizer, CharTokenizer)
    if len(tokenizer.alphabet) != size:
        raise UserError(
            f"the checkpoint's vocabulary has {size} characters, this text has {len(tokenizer.alphabet)}; "
            "pass the checkpoint's training text"
        )
    return tokenizer


def with_boundary(weights: dict[str, Tensor], newline: int) -> dict[str, Tensor]:
    """Add row 0 for the boundary, which nanoGPT lacks: embedded as the newline and never predicted.

    The final norm's bias gets a component orthogonal to all rows of the head except the boundary's: only the
    boundary's logit changes, to a very low value.
    """
    embedding, head = weights["embedding.weight"], weights["head.weight"]
    scale, bias = weights["norm.weight"], weights["norm.bias"]
    if len(head) >= head.shape[1]:
        raise UserError("can't add a boundary token; import a checkpoint with n_embd > vocabulary size")
    # Project out the rows' span from the axis that is farthest from it.
    basis = torch.linalg.qr(head.double().T).Q
    axis = int(basis.norm(dim=1).argmin())
    orthogonal = -basis @ basis[axis]
    orthogonal[axis] += 1
    orthogonal /= orthogonal.norm()
    # Far beyond the norm of the activations, so the logit is nearly constant.
    length = 10 * float((scale.abs().max() * head.shape[1] ** 0.5 + bias.norm()).double())
    row = (-IMPOSSIBLE_LOGIT / length * orthogonal).float()
    return weights | {
        "embedding.weight": torch.cat([embedding[newline : newline + 1], embedding]),
        "head.weight": torch.cat([row[None], head]),
        "norm.bias": bias + (length * orthogonal).float(),
    }
