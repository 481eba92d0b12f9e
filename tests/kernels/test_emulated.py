"""The transformer's C kernel on 64-bit Arm (NEON): compiled by Zig's clang, run by QEMU."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from makemore.kernels.transformer import LIBRARY, TransformerKernel
from makemore.runtime.native import HEADERS
from makemore.types import Batch
from tests.kernels.test_transformer import (
    SHAPES,
    autograd_loss_and_grads,
    kernel_of,
    make_batch,
    make_model,
)

EMULATOR = shutil.which("qemu-aarch64")
pytestmark = [
    pytest.mark.skipif(find_spec("ziglang") is None, reason="ziglang isn't installed"),
    pytest.mark.skipif(EMULATOR is None, reason="qemu-user isn't installed"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("emulated") / "emulated"
    source = Path(__file__).with_name("emulated.c")
    options = [
        "-target",
        "aarch64-linux-musl",
        "-O3",
        "-static",
        f"-I{HEADERS}",
        f"-I{LIBRARY.source.parent}",
    ]
    compiler = [sys.executable, "-m", "ziglang", "cc"]
    subprocess.run([*compiler, *options, "-o", str(path), str(source), "-lm"], check=True)
    return path


def write_problem(path: Path, kernel: TransformerKernel, batch: Batch) -> None:
    m, starts = kernel.as_struct, kernel._starts(batch.inputs_BT)
    sizes = (m.layers, m.heads, m.width, m.vocab, m.taps, m.gated, m.boundary, m.document_ends)
    header = np.array([*sizes, *batch.inputs_BT.shape, len(kernel.parameters)], np.int64)
    floats = np.array([m.dropout, m.impossible, m.score_scale], np.float32)
    tensors = [*kernel.rope, *kernel.parameters.values(), batch.inputs_BT, batch.targets_BT, starts]
    with path.open("wb") as file:
        for array in (header, floats, *(t.detach().contiguous().numpy() for t in tensors)):
            file.write(np.int64(array.nbytes).tobytes() + array.tobytes())


@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_on_arm_matches_autograd_in_float64(shape: str, program: Path, tmp_path: Path) -> None:
    rows, length, vocab, settings = SHAPES[shape]
    model, batch = make_model(length, vocab, **settings), make_batch(rows, length, vocab)
    loss, expected = autograd_loss_and_grads(model, batch)
    kernel = kernel_of(model)
    write_problem(tmp_path / "in", kernel, batch)
    subprocess.run([str(EMULATOR), str(program), str(tmp_path / "in"), str(tmp_path / "out")], check=True)

    data = (tmp_path / "out").read_bytes()
    panel, n_gradients = np.frombuffer(data[:16], np.int64)
    count = (batch.targets_BT >= 0).sum().item()
    assert np.frombuffer(data[16:24], np.float64)[0] == pytest.approx(loss.item() * count, rel=1e-5)
    grads = torch.from_numpy(np.frombuffer(data[24:], np.float32).copy())
    assert len(grads) == n_gradients
    at = 0
    for name, parameter in kernel.parameters.items():
        grad = grads[at : at + parameter.numel()].view_as(parameter) / count
        assert (grad - expected[name]).norm() < 1e-5 * expected[name].norm().clamp(min=1e-9), name
        padded = -(-len(parameter) // panel) * panel if name == "head.weight" else len(parameter)
        at += padded * parameter[0].numel()
