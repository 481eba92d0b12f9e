"""WaveNet against a tree evaluated on each window separately, and against PyTorch's convolutions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from makemore.models.wavenet import WaveNet, WaveNetConfig

VOCAB = 7
STYLES = pytest.mark.parametrize("style", ["tree", "gated"])


def make(style: str, block_size: int = 8) -> WaveNet:
    """A small float64 model in eval mode, with nontrivial running statistics and a nonzero head."""
    torch.manual_seed(0)
    config = WaveNetConfig(block_size=block_size, n_embd=3, n_hidden=5, style=style)  # type: ignore[arg-type]
    model = WaveNet(config, VOCAB, 0).double()
    nn.init.normal_(model.head.weight)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if "norm" in name:
            nn.init.uniform_(tensor, 0.5, 1.5)
    return model.eval()


def random_tokens(batch: int = 3, length: int = 21) -> Tensor:
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(1))


def batch_norm(x_NTC: Tensor, norm: nn.Module, training: bool = False) -> Tensor:
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    out = F.batch_norm(x_NTC.transpose(1, 2), mean, var, norm.weight, norm.bias, training, eps=norm.eps)
    return out.transpose(1, 2)


def reference_tree_logits(model: WaveNet, tokens_BT: Tensor) -> Tensor:
    """The lecture's model: each window's tokens are merged pairwise, level by level, into one vector."""
    padded = F.pad(tokens_BT, (model.config.block_size - 1, 0), value=0)
    windows = padded.unfold(1, model.config.block_size, 1)
    x = model.embedding(windows.flatten(0, 1))
    for level in model.levels:
        pairs = x.reshape(len(x), x.shape[1] // 2, 2 * x.shape[2])
        x = torch.tanh(batch_norm(pairs @ level.linear.weight.T, level.norm))
    return model.head(x[:, 0]).view(*tokens_BT.shape, VOCAB)


def conv(linear: nn.Linear, x_BCT: Tensor, dilation: int) -> Tensor:
    """The linear layer over pairs as a dilated convolution with kernel size 2."""
    kernel = linear.weight.view(linear.out_features, 2, -1).transpose(1, 2)
    return F.conv1d(x_BCT, kernel, linear.bias, dilation=dilation)


def reference_gated_logits(model: WaveNet, tokens_BT: Tensor) -> Tensor:
    """Figure 4 of the paper with ``conv1d``, on rows left-padded with boundary tokens."""
    x = model.embedding(F.pad(tokens_BT, (model.config.block_size - 1, 0), value=0)).transpose(1, 2)
    length, total = tokens_BT.shape[1], torch.zeros(())
    for i, block in enumerate(model.levels):
        both = conv(block.filter_gate, x, 2**i)
        z = torch.tanh(both[:, : both.shape[1] // 2]) * torch.sigmoid(both[:, both.shape[1] // 2 :])
        total = total + block.skip(z[..., -length:].transpose(1, 2))
        if not block.last:
            x = x[..., -z.shape[2] :] + block.residual(z.transpose(1, 2)).transpose(1, 2)
    return model.head(F.relu(model.mix(F.relu(total))))


@pytest.mark.parametrize("block_size", [2, 8, 16])
def test_tree_style_matches_the_tree_over_each_window(block_size: int) -> None:
    model, tokens = make("tree", block_size), random_tokens()
    torch.testing.assert_close(model(tokens)[0], reference_tree_logits(model, tokens))


@pytest.mark.parametrize("block_size", [2, 8, 16])
def test_gated_style_matches_the_papers_convolutions(block_size: int) -> None:
    model, tokens = make("gated", block_size), random_tokens()
    torch.testing.assert_close(model(tokens)[0], reference_gated_logits(model, tokens))


@STYLES
@pytest.mark.parametrize("chunk_sizes", [(21,), (1,) * 21, (2, 1, 11, 7)])
def test_chunked_calls_with_state_match_one_call(style: str, chunk_sizes: tuple[int, ...]) -> None:
    model, tokens = make(style), random_tokens()
    state, chunks = model.init_state(3, 21), []
    shapes = [part.shape for part in state]
    for chunk in tokens.split(chunk_sizes, dim=1):
        logits, state = model(chunk, state)
        chunks.append(logits)
    torch.testing.assert_close(torch.cat(chunks, dim=1), model(tokens)[0])
    assert [part.shape for part in state] == shapes


@STYLES
def test_a_token_affects_exactly_block_size_positions(style: str) -> None:
    model, tokens = make(style), random_tokens()
    changed = tokens.clone()
    changed[:, 10] = (changed[:, 10] + 1) % VOCAB
    differs = (model(tokens)[0] - model(changed)[0]).abs().amax(dim=(0, 2)) > 1e-12
    assert differs.nonzero().flatten().tolist() == list(range(10, 18))


@STYLES
def test_rows_are_independent(style: str) -> None:
    model, tokens = make(style), random_tokens()
    torch.testing.assert_close(model(tokens)[0][1:2], model(tokens[1:2])[0])


def test_batch_statistics_use_only_valid_positions() -> None:
    """Prefix and padding are ignored, as if the first level saw only the valid pairs."""
    model, tokens = make("tree", 2).train(), random_tokens()
    valid = torch.ones_like(tokens, dtype=torch.bool)
    valid[0, 4:] = False
    logits, _ = model(tokens, None, valid)
    pairs = model.embedding(F.pad(tokens, (1, 0)).unfold(1, 2, 1)).flatten(2)[valid][None]
    level = model.levels[0]
    normalised = batch_norm(pairs @ level.linear.weight.T, level.norm, training=True)
    torch.testing.assert_close(logits[valid], model.head(torch.tanh(normalised[0])))


@STYLES
def test_padding_does_not_affect_training_logits(style: str) -> None:
    model, tokens = make(style).train(), random_tokens()
    valid = torch.ones_like(tokens, dtype=torch.bool)
    valid[0, 4:] = False
    padded, padded_valid = F.pad(tokens, (0, 5)), F.pad(valid, (0, 5))
    changed = torch.where(padded_valid, padded, 3)
    torch.testing.assert_close(
        model(tokens, None, valid)[0][valid], model(changed, None, padded_valid)[0][padded_valid]
    )


@STYLES
def test_every_parameter_gets_a_gradient(style: str) -> None:
    model, tokens = make(style).train(), random_tokens()
    F.cross_entropy(model(tokens)[0].flatten(0, 1), tokens.flatten()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@STYLES
def test_initial_loss_is_ln_v(style: str) -> None:
    model = WaveNet(WaveNetConfig(style=style), VOCAB, 0)  # type: ignore[arg-type]
    tokens = random_tokens()
    loss = F.cross_entropy(model(tokens)[0].flatten(0, 1), tokens.flatten())
    assert loss.item() == pytest.approx(math.log(VOCAB), abs=1e-6)


def test_init_state_does_not_change_the_model() -> None:
    model = make("tree").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not any(part.requires_grad for part in model.init_state(2, 8))
    assert all(module.training for module in model.modules())
    torch.testing.assert_close(model.state_dict(), before)


def test_default_model_is_no_larger_than_the_lectures() -> None:
    assert WaveNet(WaveNetConfig(), 27, 0).n_parameters() <= 80_000


@pytest.mark.parametrize(
    "settings", [{"block_size": 6}, {"block_size": 1}, {"n_hidden": 0}, {"dropout": 1.0}]
)
def test_invalid_settings_are_rejected(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        WaveNetConfig(**settings)
