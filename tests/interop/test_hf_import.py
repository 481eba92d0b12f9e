"""Import of GPT-2 folders saved by the transformers library or by our own export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch

from makemore.errors import UserError
from makemore.interop.hf import hf_files, is_hugging_face, read_gpt2
from makemore.models.transformer import Transformer
from makemore.tokenizers import fit_tokenizer
from makemore.training.pretrained import PretrainedModel
from tests.interop.nonzero_models import nonzero_transformer

pytestmark = pytest.mark.slow

TEXT = "It's 1234 — wouldn't they've\t\n\n  日本 <b>x==y</b>  aaaa nevertheless never the less" * 3
END = "<|endoftext|>"


def build_model(imported: PretrainedModel) -> Transformer:
    model = Transformer(imported.settings, imported.tokenizer.vocab_size, 0)
    model.load_state_dict(imported.weights)
    return model.eval()


@pytest.mark.parametrize("spec", ["char", "byte", "bpe:300"])
@pytest.mark.parametrize("tie", [True, False])
def test_exported_models_import_unchanged(spec: str, tie: bool, tmp_path: Path) -> None:
    tokenizer = fit_tokenizer(spec, [TEXT])
    model = nonzero_transformer(tokenizer.vocab_size, style="gpt2", tie=tie)
    for name, data in hf_files(model, tokenizer).items():
        (tmp_path / name).write_bytes(data)
    imported = read_gpt2(tmp_path)
    assert imported.tokenizer.to_dict() == tokenizer.to_dict()
    assert imported.tokenizer_spec == spec
    assert build_model(imported).config == model.config
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in imported.weights.items())


def save_gpt2(folder: Path, **changes: Any) -> tuple[Any, Any]:
    """Save a GPT-2 with random weights and a tokenizer trained on TEXT, its boundary the last id."""
    transformers = pytest.importorskip("transformers")
    transformers.logging.disable_progress_bar()
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator([TEXT], vocab_size=290, show_progress=False)
    bpe.add_special_tokens([END])
    size = bpe.get_vocab_size()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END, eos_token=END)
    fast.save_pretrained(folder)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 40, "vocab_size": size + 3}
    config = transformers.GPT2Config(**sizes, bos_token_id=size - 1, eos_token_id=size - 1, **changes)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder, max_shard_size="40kB")
    return model, fast


def test_gpt2_saved_by_transformers_gives_the_same_logits(tmp_path: Path) -> None:
    hf_model, fast = save_gpt2(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert is_hugging_face(tmp_path)
    imported = read_gpt2(tmp_path)
    ids = torch.from_numpy(imported.tokenizer.encode(TEXT)[:39].astype("int64"))
    hf_ids = torch.tensor(fast(TEXT)["input_ids"][:39])
    assert imported.tokenizer.decode(ids) == fast.decode(hf_ids)
    boundary = torch.tensor([hf_model.config.bos_token_id])
    expected = hf_model(torch.cat([boundary, hf_ids])[None]).logits[0]
    logits = build_model(imported)(torch.cat([torch.tensor([0]), ids])[None])[0][0]
    torch.testing.assert_close(logits[:, 0], expected[:, boundary[0]], atol=1e-4, rtol=0)
    hf_order = [hf_model.config.bos_token_id, *(fast.convert_tokens_to_ids(t) for t in tokens_by_id(fast))]
    torch.testing.assert_close(logits, expected[:, hf_order], atol=1e-4, rtol=0)


def tokens_by_id(fast: Any) -> list[str]:
    """Tokens in id order, without the boundary."""
    vocab = fast.get_vocab()
    return sorted((token for token in vocab if token != END), key=vocab.__getitem__)


def test_vocab_and_merges_files_replace_tokenizer_json(tmp_path: Path) -> None:
    save_gpt2(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    expected = read_gpt2(tmp_path).tokenizer.encode(TEXT).tolist()
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(data["model"]["vocab"]), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in data["model"]["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    assert read_gpt2(tmp_path).tokenizer.encode(TEXT).tolist() == expected


def edit_json(folder: Path, name: str, **changes: Any) -> None:
    data = json.loads((folder / name).read_text(encoding="utf-8"))
    (folder / name).write_text(json.dumps(data | changes), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("config.json", {"model_type": "llama"}, "holds a llama"),
        ("config.json", {"activation_function": "relu"}, "activation_function=relu"),
        ("config.json", {"n_inner": 7}, "n_inner=7"),
        ("config.json", {"bos_token_id": None, "eos_token_id": None}, "bos_token_id"),
        ("tokenizer.json", {"normalizer": {"type": "Lowercase"}}, "rules that our tokenizers don't support"),
        (
            "tokenizer.json",
            {"model": {"type": "Unigram", "vocab": []}},
            "Unigram tokenizers aren't supported",
        ),
    ],
)
def test_unsupported_settings_are_refused(name: str, changes: dict, message: str, tmp_path: Path) -> None:
    save_gpt2(tmp_path)
    edit_json(tmp_path, name, **changes)
    with pytest.raises(UserError, match=message):
        read_gpt2(tmp_path)


@pytest.mark.parametrize(
    ("name", "key"),
    [("config.json", "n_head"), ("config.json", "n_embd"), ("tokenizer.json", "model")],
)
def test_missing_keys_are_refused(name: str, key: str, tmp_path: Path) -> None:
    save_gpt2(tmp_path)
    data = json.loads((tmp_path / name).read_text(encoding="utf-8"))
    (tmp_path / name).write_text(json.dumps({k: v for k, v in data.items() if k != key}), encoding="utf-8")
    with pytest.raises(UserError, match=f"is damaged.*'{key}'"):
        read_gpt2(tmp_path)


def test_invalid_tokenizer_json_is_refused(tmp_path: Path) -> None:
    save_gpt2(tmp_path)
    edit_json(tmp_path, "tokenizer.json", post_processor={"type": "Nothing"})
    with pytest.raises(UserError, match="tokenizer can't be read"):
        read_gpt2(tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    hf_model, _ = save_gpt2(tmp_path)
    for path in tmp_path.glob("model*"):
        path.unlink()
    torch.save(hf_model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled weights aren't read"):
        read_gpt2(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="can't be read"):
        read_gpt2(tmp_path)
