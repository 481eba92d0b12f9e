"""Hugging Face model directories: export for AutoModelForCausalLM, import of GPT-2 weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from makemore.errors import UserError
from makemore.interop.base import ExportFormat
from makemore.interop.gpt2 import from_gpt2, reorder_vocabulary, to_gpt2
from makemore.interop.hf_tokenizer import BOUNDARY, read_tokenizer, to_hugging_face
from makemore.interop.nanochat import to_nanochat
from makemore.interop.remote.bundle import modeling_code
from makemore.models.base import CountModel, LanguageModel, MixtureModel
from makemore.models.transformer import Transformer
from makemore.runtime.files import user_format_errors, utf8_path
from makemore.runtime.untrusted import file_size, read_foreign_json
from makemore.tokenizers import Tokenizer
from makemore.training.pretrained import PretrainedModel, read_run


def hf_files(model: LanguageModel, tokenizer: Tokenizer) -> dict[str, bytes]:
    """Contents of the files, by name. Raises UserError for models that count, and mixtures."""
    if isinstance(model, CountModel | MixtureModel):
        raise UserError("--format hf is for single neural models; --format arpa takes count")
    config, tensors, code = _architecture(model)
    ids = {"bos_token_id": tokenizer.boundary_id, "eos_token_id": tokenizer.boundary_id}
    limit = None if model.supports_streaming else model.max_len
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOUNDARY,
        "eos_token": BOUNDARY,
        "pad_token": BOUNDARY,
        "padding_side": "left",
        "split_special_tokens": True,  # a boundary spelled out in a text is text
        **({} if limit is None else {"model_max_length": limit}),
        "clean_up_tokenization_spaces": False,
    }
    cpu_tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return {
        **code,
        "config.json": _json({**config, **ids, "dtype": "float32"}),
        "generation_config.json": _json({**ids, "pad_token_id": tokenizer.boundary_id, "do_sample": True}),
        "model.safetensors": save(cpu_tensors, {"format": "pt"}),
        "tokenizer.json": to_hugging_face(tokenizer).to_str(pretty=True).encode(),
        "tokenizer_config.json": _json(tokenizer_config),
    }


def _architecture(model: LanguageModel) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, bytes]]:
    """Settings, tensors, and code, if transformers doesn't know the architecture."""
    if isinstance(model, Transformer) and not has_code(model):
        return *(to_gpt2(model) if model.config.style == "gpt2" else to_nanochat(model)), {}
    classes = {"AutoConfig": "MakemoreConfig", "AutoModelForCausalLM": "MakemoreForCausalLM"}
    config = {
        "model_type": "makemore",
        "architectures": ["MakemoreForCausalLM"],
        "auto_map": {name: f"modeling_makemore.{cls}" for name, cls in classes.items()},
        "vocab_size": model.vocab_size,
        "settings": model.config.model_dump(mode="json"),
        "document_ends": model.document_ends,
    }
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"model.{name}": tensor for name, tensor in model.named_buffers()}  # rotary tables, too
    return config, tensors, {"modeling_makemore.py": modeling_code(type(model)).encode()}


def has_code(model: LanguageModel) -> bool:
    """Whether the export of a model needs ``trust_remote_code``."""
    if not isinstance(model, Transformer):
        return True
    config = model.config
    return config.has_conv or config.has_gate or (config.style == "modern" and config.score_scale != 1)


def note(model: LanguageModel) -> str:
    if not has_code(model):
        return ""
    return "load it with trust_remote_code=True: modeling_makemore.py is this model's code"


def _json(payload: dict[str, Any]) -> bytes:
    return (json.dumps(payload, indent=2, ensure_ascii=False) + "\n").encode()


FIXED_SETTINGS = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
"""Hugging Face settings that are fixed in our transformer, with the accepted values."""


def is_hugging_face(folder: Path) -> bool:
    """Whether a folder is a Hugging Face model rather than a run."""
    try:
        return "model_type" in read_foreign_json(folder / "config.json")
    except (OSError, ValueError, TypeError):
        return False


def read_pretrained(folder: Path) -> PretrainedModel:
    """Read a run, or a GPT-2 saved by Hugging Face's transformers. Raises UserError if it is neither."""
    return read_gpt2(folder) if is_hugging_face(folder) else read_run(folder)


def read_gpt2(folder: Path) -> PretrainedModel:
    """Import a GPT-2. Raises UserError for other architectures or tokenizers, pickled weights or damage."""
    with user_format_errors(folder):
        config = read_foreign_json(folder / "config.json")
        _check(folder, config)
        settings, weights = from_gpt2(_weights(folder), config["n_head"], transposed=True)
        boundary = config.get("bos_token_id")
        boundary = config.get("eos_token_id") if boundary is None else boundary
        if not isinstance(boundary, int):
            raise UserError(f"{folder}/config.json has no bos_token_id or eos_token_id to separate documents")
        tokenizer, spelling, rows = read_tokenizer(folder, boundary)
        if max(rows) >= len(weights["embedding.weight"]):
            raise UserError(f"{folder}: the tokenizer has more tokens than the model's embedding has rows")
        return PretrainedModel(
            settings=settings,
            weights=reorder_vocabulary(weights, rows),
            tokenizer=tokenizer,
            tokenizer_spec=spelling,
            origin=str(folder),
        )


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
            names = sorted(set(read_foreign_json(index)["weight_map"].values()))
        else:
            names = ["model.safetensors"]
        weights: dict[str, Tensor] = {}
        for path in (folder / Path(name).name for name in names):
            file_size(path)  # refuses pipes and devices
            with utf8_path(path) as readable:
                weights |= load_file(readable)
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no model.safetensors; pickled weights aren't read, so save the model again with "
            "transformers' save_pretrained"
        ) from None
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"{folder}: the weights can't be read: {error}") from None
    return weights


FORMAT = ExportFormat(
    suffix="-hf",
    files=lambda run: hf_files(run.model, run.tokenizer),
    note=note,
    is_export=is_hugging_face,
    front_matter="library_name: transformers\npipeline_tag: text-generation\ntags:\n- makemore",
)
