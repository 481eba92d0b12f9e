"""GPT-2 folders, as transformers saves them and as we export them, read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch

from makemore.errors import UserError
from makemore.interop.hf import ImportedModel, hf_files, is_hugging_face, read_gpt2
from makemore.models.transformer import Transformer, TransformerConfig
from makemore.tokenizers import fit_tokenizer
from tests.interop.nonzero_models import loud_transformer

TEXT = "It's 1234 — wouldn't they've\t\n\n  日本 <b>x==y</b>  aaaa nevertheless never the less" * 3
END = "<|endoftext|>"


def model_of(start: ImportedModel) -> Transformer:
    model = Transformer(TransformerConfig(**start.settings), start.tokenizer.vocab_size, 0)
    model.load_state_dict(start.weights)
    return model.eval()


@pytest.mark.parametrize("spec", ["char", "byte", "bpe:300"])
@pytest.mark.parametrize("tie", [True, False])
def test_what_we_export_comes_back(spec: str, tie: bool, tmp_path: Path) -> None:
    tokenizer = fit_tokenizer(spec, [TEXT])
    model = loud_transformer(tokenizer.vocab_size, style="gpt2", tie=tie)
    for name, data in hf_files(model, tokenizer).items():
        (tmp_path / name).write_bytes(data)
    start = read_gpt2(tmp_path)
    assert start.tokenizer.to_dict() == tokenizer.to_dict()
    assert start.spelling == spec
    assert model_of(start).config == model.config
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in start.weights.items())


def save_gpt2(folder: Path, **changes: Any) -> tuple[Any, Any]:
    """A GPT-2 of random weights, its boundary's id the last, its tokenizer trained on the text."""
    transformers = pytest.importorskip("transformers")
    transformers.logging.disable_progress_bar()
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator([TEXT], vocab_size=290, show_progress=False)
    trained.add_special_tokens([END])
    size = trained.get_vocab_size()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=trained, bos_token=END, eos_token=END)
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


def test_a_gpt2_from_elsewhere(tmp_path: Path) -> None:
    theirs, fast = save_gpt2(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert is_hugging_face(tmp_path)
    start = read_gpt2(tmp_path)
    ours = torch.from_numpy(start.tokenizer.encode(TEXT)[:39].astype("int64"))
    ids = torch.tensor(fast(TEXT)["input_ids"][:39])
    assert start.tokenizer.decode(ours) == fast.decode(ids)
    boundary = torch.tensor([theirs.config.bos_token_id])
    expected = theirs(torch.cat([boundary, ids])[None]).logits[0]
    found = model_of(start)(torch.cat([torch.tensor([0]), ours])[None])[0][0]
    torch.testing.assert_close(found[:, 0], expected[:, boundary[0]], atol=1e-4, rtol=0)
    order = [theirs.config.bos_token_id, *(fast.convert_tokens_to_ids(token) for token in fast_tokens(fast))]
    torch.testing.assert_close(found, expected[:, order], atol=1e-4, rtol=0)


def fast_tokens(fast: Any) -> list[str]:
    """In the order of their ids, less the boundary, which is ours too."""
    vocab = fast.get_vocab()
    return sorted((token for token in vocab if token != END), key=vocab.__getitem__)


def test_gpt2s_own_files_without_a_tokenizer_json(tmp_path: Path) -> None:
    save_gpt2(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    before = read_gpt2(tmp_path).tokenizer.encode(TEXT).tolist()
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(data["model"]["vocab"]), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in data["model"]["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    assert read_gpt2(tmp_path).tokenizer.encode(TEXT).tolist() == before


def spoil(folder: Path, name: str, **changes: Any) -> None:
    data = json.loads((folder / name).read_text(encoding="utf-8"))
    (folder / name).write_text(json.dumps(data | changes), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "changes", "said"),
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
def test_what_ours_is_not_like_is_refused(name: str, changes: dict, said: str, tmp_path: Path) -> None:
    save_gpt2(tmp_path)
    spoil(tmp_path, name, **changes)
    with pytest.raises(UserError, match=said):
        read_gpt2(tmp_path)


@pytest.mark.parametrize(
    ("name", "key"),
    [("config.json", "n_head"), ("config.json", "n_embd"), ("tokenizer.json", "model")],
)
def test_what_lacks_something_is_refused(name: str, key: str, tmp_path: Path) -> None:
    save_gpt2(tmp_path)
    data = json.loads((tmp_path / name).read_text(encoding="utf-8"))
    (tmp_path / name).write_text(json.dumps({k: v for k, v in data.items() if k != key}), encoding="utf-8")
    with pytest.raises(UserError, match=f"is damaged.*'{key}'"):
        read_gpt2(tmp_path)


def test_a_tokenizer_that_the_library_refuses(tmp_path: Path) -> None:
    save_gpt2(tmp_path)
    spoil(tmp_path, "tokenizer.json", post_processor={"type": "Nothing"})
    with pytest.raises(UserError, match="tokenizer can't be read"):
        read_gpt2(tmp_path)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    theirs, _ = save_gpt2(tmp_path)
    for path in tmp_path.glob("model*"):
        path.unlink()
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled weights aren't read"):
        read_gpt2(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="can't be read"):
        read_gpt2(tmp_path)
