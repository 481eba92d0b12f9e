"""Export for Hugging Face's ``transformers``: AutoModelForCausalLM and AutoTokenizer."""

from __future__ import annotations

import json
from typing import Any

from safetensors.torch import save

from makemore.errors import UserError
from makemore.interop.gpt2 import to_gpt2
from makemore.interop.hf_tokenizer import BOUNDARY, to_hugging_face
from makemore.interop.nanochat import to_nanochat
from makemore.models.base import LanguageModel
from makemore.models.transformer import Transformer
from makemore.tokenizers import Tokenizer


def hf_files(model: LanguageModel, tokenizer: Tokenizer) -> dict[str, bytes]:
    """Contents of the files, by name. Raises UserError if no stock architecture fits the model."""
    check_exportable(model)
    assert isinstance(model, Transformer)
    config, tensors = to_gpt2(model) if model.config.style == "gpt2" else to_nanochat(model)
    ids = {"bos_token_id": tokenizer.boundary_id, "eos_token_id": tokenizer.boundary_id}
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOUNDARY,
        "eos_token": BOUNDARY,
        "model_max_length": model.config.block_size,
        "clean_up_tokenization_spaces": False,
    }
    cpu_tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return {
        "config.json": _json({**config, **ids, "dtype": "float32"}),
        "generation_config.json": _json({**ids, "pad_token_id": tokenizer.boundary_id, "do_sample": True}),
        "model.safetensors": save(cpu_tensors, {"format": "pt"}),
        "tokenizer.json": to_hugging_face(tokenizer).to_str(pretty=True).encode(),
        "tokenizer_config.json": _json(tokenizer_config),
    }


def check_exportable(model: LanguageModel) -> None:
    """Raise UserError if no stock architecture fits the model."""
    if not isinstance(model, Transformer):
        raise UserError("--format hf is for the transformer; other models have no stock architecture")
    if model.config.has_conv:
        raise UserError(
            "no stock architecture has this transformer's short convolutions; for --format hf, train "
            "with --set model.style=gpt2 or --set model.conv=1"
        )


def _json(payload: dict[str, Any]) -> bytes:
    return (json.dumps(payload, indent=2, ensure_ascii=False) + "\n").encode()
