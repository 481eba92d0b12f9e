"""Import of nanoGPT and makemore.py checkpoints, against reference models."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch

from makemore.errors import UserError
from makemore.interop import importing
from makemore.interop.checkpoint_file import read_checkpoint
from makemore.interop.importing import import_checkpoint
from makemore.interop.pickled import from_makemore, from_nanogpt
from makemore.runs.run import load
from makemore.sampling.text import SampleRequest, stream_text
from tests.interop.reference import Reference

PLAY = "To be, or not\nto be: that is\nthe question!\n" * 20
NAMES = "emma\nolivia\nava\nisabella\nsophia\n" * 8


@pytest.fixture(autouse=True)
def untrained_models_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Import models with random weights, which predict the text worse than guessing."""
    monkeypatch.setattr(importing, "MAX_EXCESS", float("inf"))


@pytest.fixture
def play_path(tmp_path: Path) -> Path:
    path = tmp_path / "play.txt"
    path.write_text(PLAY, encoding="utf-8")
    return path


@pytest.fixture
def names_path(tmp_path: Path) -> Path:
    path = tmp_path / "names.txt"
    path.write_text(NAMES, encoding="utf-8")
    return path


def save_nanogpt(folder: Path, vocab: int, bias: bool = False, **settings: Any) -> tuple[Reference, Path]:
    model = Reference(vocab, tied=True, bias=bias, **settings)
    args = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16, "bias": bias}
    weights = {f"_orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}
    saved = {"model": weights, "model_args": args, "iter_num": 7, "best_val_loss": torch.tensor(1.5)}
    torch.save({**saved, "optimizer": {"state": {}}, "config": {"dataset": "play"}}, folder / "ckpt.pt")
    return model, folder / "ckpt.pt"


@pytest.mark.parametrize("bias", [False, True])
def test_nanogpt_import_gives_the_same_logits(bias: bool, play_path: Path, tmp_path: Path) -> None:
    alphabet = sorted(set(PLAY))
    reference, path = save_nanogpt(tmp_path, len(alphabet), bias)
    run = import_checkpoint(path, str(play_path), tmp_path / "run")
    text = "not to be,\nthat"
    ids = torch.tensor([[alphabet.index(char) for char in text]])
    our_ids = torch.from_numpy(run.tokenizer.encode(text).astype("int64"))[None]
    # nanoGPT has no boundary token; a newline replaces it.
    expected = reference(torch.cat([torch.tensor([[alphabet.index("\n")]]), ids], dim=1)).log_softmax(-1)
    log_probs = run.model(torch.cat([torch.tensor([[0]]), our_ids], dim=1))[0].log_softmax(-1)
    assert expected.std() > 0.5
    torch.testing.assert_close(log_probs[..., 1:], expected, atol=1e-4, rtol=0)
    assert log_probs[..., 0].max() < -20
    assert run.mode == "text"


def test_exact_gelu_of_nanogpt_barely_changes_the_logits(play_path: Path, tmp_path: Path) -> None:
    alphabet = sorted(set(PLAY))
    reference, path = save_nanogpt(tmp_path, len(alphabet), gelu="none")
    run = import_checkpoint(path, str(play_path), tmp_path / "run")
    ids = torch.randint(0, len(alphabet), (4, 16))
    ids[:, 0] = alphabet.index("\n")
    our_ids = ids + 1
    our_ids[:, 0] = 0
    log_probs = run.model(our_ids)[0][..., 1:].log_softmax(-1)
    torch.testing.assert_close(log_probs, reference(ids).log_softmax(-1), atol=5e-3, rtol=0)


def test_makemore_transformer_import_gives_the_same_logits(names_path: Path, tmp_path: Path) -> None:
    reference = Reference(len(set(NAMES)), tied=False, bias=True)  # the newline's id becomes the boundary's
    torch.save(reference.state_dict(), tmp_path / "model.pt")
    run = import_checkpoint(tmp_path / "model.pt", str(names_path), tmp_path / "run", n_head=2)
    tokens = torch.randint(1, run.tokenizer.vocab_size, (3, 16))
    tokens[:, 0] = 0
    torch.testing.assert_close(run.model(tokens)[0], reference(tokens), atol=1e-4, rtol=0)
    assert run.tokenizer.encode("ava").tolist() == [1, run.tokenizer.vocab_size - 1, 1]
    assert run.mode == "lines"
    assert list(stream_text(run, SampleRequest(prompt="em", seed=1, max_new_tokens=3)))


def test_makemore_bigram_import_gives_the_same_logits(names_path: Path, tmp_path: Path) -> None:
    logits = torch.randn(len(set(NAMES)), len(set(NAMES)))
    torch.save({"logits": logits}, tmp_path / "model.pt")
    run = load(import_checkpoint(tmp_path / "model.pt", str(names_path), tmp_path / "run").folder.path)
    assert torch.equal(run.model(torch.arange(len(logits))[None])[0][0], logits)


def test_other_makemore_models_are_refused() -> None:
    with pytest.raises(UserError, match="transformer and bigram"):
        from_makemore({"wte.weight": torch.zeros(3, 3)}, NAMES)


def test_text_with_other_characters_is_refused(tmp_path: Path) -> None:
    _, path = save_nanogpt(tmp_path, len(set(PLAY)))
    with pytest.raises(UserError, match=r"has \d+ characters, this text has \d+"):
        from_nanogpt(read_checkpoint(path), NAMES)


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ({"model": {}, "model_args": {"dim": 288, "n_heads": 6}}, "no n_head"),  # llama2.c
        ({"model": 3, "model_args": {"n_head": 2}}, r"ckpt\.pt is damaged"),
        ({"model": {"wte.weight": 3, "wpe.weight": 3}, "model_args": {"n_head": 2}}, r"ckpt\.pt is damaged"),
        ({"model": {"wte.weight": torch.zeros(3)}, "model_args": 7}, r"ckpt\.pt is damaged"),
        ({"logits": 1.5}, r"ckpt\.pt is damaged"),
        ({"transformer.wte.weight": "x"}, r"ckpt\.pt is damaged"),
    ],
)
def test_malformed_checkpoints_are_refused(
    checkpoint: dict[str, Any], message: str, play_path: Path, tmp_path: Path
) -> None:
    torch.save(checkpoint, tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match=message):
        import_checkpoint(tmp_path / "ckpt.pt", str(play_path), tmp_path / "run")


def test_high_layer_number_allocates_no_memory() -> None:
    weights = {"wte.weight": torch.zeros(5, 4), "wpe.weight": torch.zeros(5, 4)}
    weights["h.100000.ln_1.weight"] = torch.zeros(4)
    tracemalloc.start()
    with pytest.raises(UserError, match="are incomplete"):
        from_nanogpt({"model": weights, "model_args": {"n_head": 2}}, PLAY)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1e6


class Exploit:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("is_raw_pickle", [True, False])
def test_pickled_code_is_not_executed(is_raw_pickle: bool, tmp_path: Path) -> None:
    checkpoint = {"model": Exploit(tmp_path / "evil"), "model_args": {}}
    if is_raw_pickle:
        (tmp_path / "ckpt.pt").write_bytes(pickle.dumps(checkpoint))
    else:
        torch.save(checkpoint, tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match="run code"):
        read_checkpoint(tmp_path / "ckpt.pt")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("data", [b"", b"hello", b"PK\x03\x04" + bytes(50)], ids=["empty", "text", "zip"])
def test_damaged_files_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "ckpt.pt").write_bytes(data)
    with pytest.raises(UserError, match=r"ckpt\.pt"):
        read_checkpoint(tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match="no such file"):
        read_checkpoint(tmp_path / "nothing.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="not a checkpoint"):
        read_checkpoint(tmp_path / "list.pt")
