"""Checkpoints of nanoGPT and makemore.py, against the models that wrote them."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch

from makemore.errors import UserError
from makemore.interop.importing import import_checkpoint
from makemore.interop.pickled import from_makemore, from_nanogpt, read_checkpoint
from makemore.runs.run import load
from tests.interop.reference import Reference

PLAY = "To be, or not\nto be: that is\nthe question!\n" * 20
NAMES = "emma\nolivia\nava\nisabella\nsophia\n" * 8


@pytest.fixture
def play(tmp_path: Path) -> Path:
    path = tmp_path / "play.txt"
    path.write_text(PLAY, encoding="utf-8")
    return path


@pytest.fixture
def names(tmp_path: Path) -> Path:
    path = tmp_path / "names.txt"
    path.write_text(NAMES, encoding="utf-8")
    return path


def nanogpt(folder: Path, vocab: int, bias: bool = False, **settings: Any) -> tuple[Reference, Path]:
    model = Reference(vocab, tied=True, bias=bias, **settings)
    arguments = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16, "bias": bias}
    weights = {f"_orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}
    kept = {"model": weights, "model_args": arguments, "iter_num": 7, "best_val_loss": torch.tensor(1.5)}
    torch.save({**kept, "optimizer": {"state": {}}, "config": {"dataset": "play"}}, folder / "ckpt.pt")
    return model, folder / "ckpt.pt"


@pytest.mark.parametrize("bias", [False, True])
def test_nanogpt_of_characters(bias: bool, play: Path, tmp_path: Path) -> None:
    alphabet = sorted(set(PLAY))
    theirs, path = nanogpt(tmp_path, len(alphabet), bias)
    run = import_checkpoint(path, str(play), tmp_path / "run")
    text = "not to be,\nthat"
    ids = torch.tensor([[alphabet.index(char) for char in text]])
    ours = torch.from_numpy(run.tokenizer.encode(text).astype("int64"))[None]
    # They read no boundary: its newline stands for it.
    expected = theirs(torch.cat([torch.tensor([[alphabet.index("\n")]]), ids], dim=1)).log_softmax(-1)
    found = run.model(torch.cat([torch.tensor([[0]]), ours], dim=1))[0].log_softmax(-1)
    assert expected.std() > 0.5
    torch.testing.assert_close(found[..., 1:], expected, atol=1e-4, rtol=0)
    assert found[..., 0].max() < -20
    assert run.mode == "text"


def test_nanogpts_exact_gelu_moves_little(play: Path, tmp_path: Path) -> None:
    alphabet = sorted(set(PLAY))
    theirs, path = nanogpt(tmp_path, len(alphabet), gelu="none")
    run = import_checkpoint(path, str(play), tmp_path / "run")
    ids = torch.randint(0, len(alphabet), (4, 16))
    ids[:, 0] = alphabet.index("\n")
    ours = ids + 1
    ours[:, 0] = 0
    found = run.model(ours)[0][..., 1:].log_softmax(-1)
    torch.testing.assert_close(found, theirs(ids).log_softmax(-1), atol=5e-3, rtol=0)


def test_makemores_transformer(names: Path, tmp_path: Path) -> None:
    theirs = Reference(len(set(NAMES)), tied=False, bias=True)  # newline's place is the boundary's
    torch.save(theirs.state_dict(), tmp_path / "model.pt")
    run = import_checkpoint(tmp_path / "model.pt", str(names), tmp_path / "run", n_head=2)
    tokens = torch.randint(1, run.tokenizer.vocab_size, (3, 16))
    tokens[:, 0] = 0
    torch.testing.assert_close(run.model(tokens)[0], theirs(tokens), atol=1e-4, rtol=0)
    assert run.tokenizer.encode("ava").tolist() == [1, run.tokenizer.vocab_size - 1, 1]
    assert run.mode == "lines"
    assert list(run.generate("em", seed=1, max_new_tokens=3))


def test_makemores_bigram(names: Path, tmp_path: Path) -> None:
    logits = torch.randn(len(set(NAMES)), len(set(NAMES)))
    torch.save({"logits": logits}, tmp_path / "model.pt")
    run = load(import_checkpoint(tmp_path / "model.pt", str(names), tmp_path / "run").folder.path)
    assert torch.equal(run.model(torch.arange(len(logits))[None])[0][0], logits)


def test_another_of_makemores_models_is_refused() -> None:
    with pytest.raises(UserError, match="transformer and bigram"):
        from_makemore({"wte.weight": torch.zeros(3, 3)}, NAMES)


def test_the_text_must_be_its_own(tmp_path: Path) -> None:
    _, path = nanogpt(tmp_path, len(set(PLAY)))
    with pytest.raises(UserError, match=r"has \d+ characters, but this text has \d+"):
        from_nanogpt(read_checkpoint(path), NAMES)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"model": {}, "model_args": {"dim": 288, "n_heads": 6}}, "no n_head"),  # llama2.c
        ({"model": 3, "model_args": {"n_head": 2}}, r"ckpt\.pt is damaged"),
        ({"model": {"wte.weight": 3, "wpe.weight": 3}, "model_args": {"n_head": 2}}, r"ckpt\.pt is damaged"),
        ({"model": {"wte.weight": torch.zeros(3)}, "model_args": 7}, r"ckpt\.pt is damaged"),
        ({"logits": 1.5}, r"ckpt\.pt is damaged"),
        ({"transformer.wte.weight": "x"}, r"ckpt\.pt is damaged"),
    ],
)
def test_what_is_no_checkpoint_of_theirs_is_refused(
    found: dict[str, Any], said: str, play: Path, tmp_path: Path
) -> None:
    torch.save(found, tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match=said):
        import_checkpoint(tmp_path / "ckpt.pt", str(play), tmp_path / "run")


def test_a_layer_of_a_high_number_takes_no_memory() -> None:
    weights = {"wte.weight": torch.zeros(5, 4), "wpe.weight": torch.zeros(5, 4)}
    weights["h.100000.ln_1.weight"] = torch.zeros(4)
    tracemalloc.start()
    with pytest.raises(UserError, match="are incomplete"):
        from_nanogpt({"model": weights, "model_args": {"n_head": 2}}, PLAY)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1e6


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("plain", [True, False])
def test_nothing_is_executed(plain: bool, tmp_path: Path) -> None:
    made = {"model": Evil(tmp_path / "evil"), "model_args": {}}
    if plain:
        (tmp_path / "ckpt.pt").write_bytes(pickle.dumps(made))
    else:
        torch.save(made, tmp_path / "ckpt.pt")
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
