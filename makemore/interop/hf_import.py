"""Import a GPT-2 from a local Hugging Face folder. Only safetensors weights are read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from makemore.errors import UserError
from makemore.interop.gpt2_import import from_gpt2, reorder_vocabulary
from makemore.interop.hf_tokenizer_import import read_tokenizer
from makemore.runtime.files import user_format_errors
from makemore.tokenizers import Tokenizer

FIXED_SETTINGS = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
"""Hugging Face settings that are fixed in our transformer, with the accepted values."""


@dataclass(frozen=True)
class ImportedModel:
    """An imported model, converted to our settings and weights."""

    model: str
    settings: dict[str, Any]
    weights: dict[str, Tensor]
    tokenizer: Tokenizer
    spelling: str
    """The tokenizer's name on the command line."""


def is_hugging_face(folder: Path) -> bool:
    """Whether a folder is a Hugging Face model rather than a run."""
    try:
        return "model_type" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def read_gpt2(folder: Path) -> ImportedModel:
    """Import a GPT-2; UserError for other architectures, pickled weights, unknown tokenizers or damage."""
    with user_format_errors(folder):
        return _read_gpt2(folder)


def _read_gpt2(folder: Path) -> ImportedModel:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    _check(folder, config)
    settings, weights = from_gpt2(_weights(folder), {"n_head": config["n_head"]}, transposed=True)
    boundary = config.get("bos_token_id")
    boundary = config.get("eos_token_id") if boundary is None else boundary
    if not isinstance(boundary, int):
        raise UserError(f"{folder}/config.json has no bos_token_id or eos_token_id to separate documents")
    tokenizer, spelling, rows = read_tokenizer(folder, boundary)
    if max(rows) >= len(weights["embedding.weight"]):
        raise UserError(f"{folder}: the tokenizer has more tokens than the model's embedding has rows")
    return ImportedModel("transformer", settings, reorder_vocabulary(weights, rows), tokenizer, spelling)


def _check(folder: Path, config: dict[str, Any]) -> None:
    if config["model_type"] != "gpt2":
        raise UserError(f"{folder} holds a {config['model_type']}; --init-from takes a gpt2 model or a run")
    for name, allowed in FIXED_SETTINGS.items():
        if config.get(name, allowed[0]) not in allowed:
            raise UserError(f"{folder}: {name}={config[name]} isn't supported; it must be {allowed[0]}")
    if config.get("n_inner") not in (None, 4 * config["n_embd"]):
        raise UserError(f"{folder}: n_inner={config['n_inner']} isn't supported; it must be 4 x n_embd")


def _weights(folder: Path) -> dict[str, Tensor]:
    index = folder / "model.safetensors.index.json"
    try:
        if index.is_file():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        else:
            names = ["model.safetensors"]
        parts = [load_file(folder / Path(name).name) for name in names]
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no model.safetensors; pickled weights aren't read, so save the model again with "
            "transformers' save_pretrained"
        ) from None
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"{folder}: the weights can't be read: {error}") from None
    return {name: tensor for part in parts for name, tensor in part.items()}
