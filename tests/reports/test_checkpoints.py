"""Faults reported with checkpoints of other programs; comments describe the reports."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from makemore.errors import UserError
from makemore.interop.checkpoint_file import read_checkpoint
from makemore.interop.pickled import from_nanogpt, with_boundary
from makemore.runs.run import load
from tests.cli.conftest import call, train
from tests.cli.conftest import refused as refused
from tests.cli.conftest import trained_runs as trained_runs
from tests.cli.conftest import work as work

ATTACKS = {
    "bytearray": b"cbuiltins\nbytearray\n(J\xff\xff\xff\x7ftR.",
    "tensor": b"ctorch\nFloatTensor\n(J\xff\xff\xff\x7ftR.",
    "storage": b"ctorch.storage\nUntypedStorage\n(J\xff\xff\xff\x7ftR.",
    "protocol 4": pickle.dumps(bytearray, protocol=4),
}


def save_bigram(path: Path, logits: torch.Tensor, prefix: str = "") -> Path:
    torch.save({f"{prefix}logits": logits}, path)
    return path


def bigram_of(run: str) -> torch.Tensor:
    """Weights of a trained bigram, which are makemore.py's ``logits``."""
    train("words.txt", "-m", "bigram", "--steps", "60", "--out", run)
    return load(run, "cpu").model.state_dict()["W"]


# A checkpoint of less than a megabyte that takes all memory.
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_checkpoint_names_no_function_that_takes_memory(tmp_path, attack):
    with zipfile.ZipFile(tmp_path / "ckpt.pt", "w") as archive:
        archive.writestr("ckpt/data.pkl", b"\x80\x02" + ATTACKS[attack])
        archive.writestr("ckpt/version", b"3\n")
    with pytest.raises(UserError, match="could run code"):
        read_checkpoint(tmp_path / "ckpt.pt")


def test_a_checkpoint_is_no_larger_in_memory_than_its_file(tmp_path):
    save_bigram(tmp_path / "plain.pt", torch.zeros(2000, 2000))
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "packed.pt", "w") as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "packed.pt").stat().st_size < 100_000
    with pytest.raises(UserError, match="unpacks to more bytes"):
        read_checkpoint(tmp_path / "packed.pt")
    save_bigram(tmp_path / "expanded.pt", torch.zeros(1).expand(100_000, 100_000))
    with pytest.raises(UserError, match="hold tensors of 40,000,000,000 bytes"):
        read_checkpoint(tmp_path / "expanded.pt")


def test_a_wide_checkpoint_takes_no_square_matrix():
    width = 100_000  # its square would be 80 GB
    rows = torch.randn(3, width)
    weights = {"embedding.weight": rows, "head.weight": rows}
    weights |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    converted = with_boundary(weights, newline=0)
    bias, head = converted["norm.bias"], converted["head.weight"]
    assert (head[1:] @ bias).abs().max() < 1e-3 * bias.norm()
    assert head[0] @ bias == pytest.approx(-30, rel=1e-3)


@pytest.mark.skipif(os.name != "posix", reason="needs named pipes")
def test_a_pipe_is_no_checkpoint(work, refused):
    os.mkfifo("pipe.pt")
    assert "not a regular file" in refused("import", "pipe.pt", "words.txt")


# Weights that are not numbers, imported without a word.
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_must_be_finite(work, refused, value):
    logits = torch.zeros(8, 8)
    logits[1, 2] = value
    save_bigram(work / "model.pt", logits)
    assert "NaN or infinite" in refused("import", "model.pt", "words.txt", "--out", "run")


# nanoGPT#325 and others: keys of compiled models that were trained on several GPUs.
@pytest.mark.parametrize("prefix", ["module._orig_mod.", "_orig_mod.module.", "module.", "module.module."])
def test_prefixes_of_compiled_and_distributed_models_are_removed(work, prefix):
    logits = bigram_of("bigram")
    save_bigram(work / "model.pt", logits, prefix)
    assert call("import", "model.pt", "words.txt", "--out", "run").status == 0
    assert torch.equal(load("run", "cpu").model.state_dict()["W"], logits)
    arguments: dict[str, Any] = {"n_head": 2}
    weights = {
        f"{prefix}transformer.wte.weight": torch.zeros(3, 8),
        f"{prefix}transformer.wpe.weight": torch.zeros(2, 8),
    }
    weights[f"{prefix}transformer.ln_f.weight"] = torch.ones(8)
    with pytest.raises(UserError, match="n_layer=0"):  # the weights are found, of no layers
        from_nanogpt({"model": weights, "model_args": arguments}, "abc")


# A text with as many characters as the training text, but other ones.
def test_a_text_in_another_alphabet_is_refused(work, refused):
    save_bigram(work / "model.pt", bigram_of("bigram"))
    text = (work / "words.txt").read_text(encoding="utf-8")
    other = text.translate(str.maketrans("aeibdkl", "дкблаеи"))
    (work / "other.txt").write_text(other, encoding="utf-8")
    assert "worse than guessing" in refused("import", "model.pt", "other.txt", "--out", "run")
    assert call("import", "model.pt", "words.txt", "--out", "run").status == 0
