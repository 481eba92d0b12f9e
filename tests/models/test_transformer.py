"""The transformer against Hugging Face's GPT-2 and against its equations in float64."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from makemore.models.layers.attention import (
    apply_rope,
    attend,
    causal_bias,
    document_causal_bias,
    rope_table,
    write_cache,
)
from makemore.models.transformer import Transformer, TransformerConfig
from makemore.settings import CorpusStats, Recipe
from makemore.types import IGNORE_INDEX

VOCAB = 13
STYLES = pytest.mark.parametrize("style", ["modern", "gpt2"])


def make(**settings: Any) -> Transformer:
    """A small model in eval mode with no parameter at its initial zero or one."""
    torch.manual_seed(0)
    defaults = {"block_size": 16, "n_layer": 3, "n_head": 4, "n_embd": 32}
    model = Transformer(TransformerConfig(**{**defaults, **settings}), VOCAB, 0)
    randomise(model)
    return model.eval()


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)


def random_tokens(batch: int = 3, length: int = 16, seed: int = 1) -> Tensor:
    """Documents (B, T): the boundary, then random other tokens."""
    tokens = torch.randint(1, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))
    tokens[:, 0] = 0
    return tokens


def normal(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- gpt2, against Hugging Face ------------------------------------------------------------------


def hugging_face_twin(model: Transformer) -> Any:
    """A GPT2LMHeadModel of the same shape with random weights."""
    transformers = pytest.importorskip("transformers")
    c = model.config
    config = transformers.GPT2Config(
        vocab_size=VOCAB,
        n_positions=c.block_size,
        n_embd=c.n_embd,
        n_layer=c.n_layer,
        n_head=c.n_head,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",
    )
    twin = transformers.GPT2LMHeadModel(config)
    randomise(twin)
    return twin.eval()


def weights_of(twin: Any) -> dict[str, Tensor]:
    """GPT-2's weights under our names; its Conv1D stores matrices as (inputs, outputs)."""
    blocks = {
        "norm1": "ln_1",
        "norm2": "ln_2",
        "attention.qkv": "attn.c_attn",
        "attention.out": "attn.c_proj",
        "feed_forward.up": "mlp.c_fc",
        "feed_forward.down": "mlp.c_proj",
    }
    theirs = twin.state_dict()
    names = {"embedding": "wte", "positions": "wpe", "norm": "ln_f"}
    for i in range(twin.config.n_layer):
        names |= {f"blocks.{i}.{ours}": f"h.{i}.{name}" for ours, name in blocks.items()}
    weights = {"head.weight": theirs["lm_head.weight"]}
    for ours, name in names.items():
        for kind in ("weight", "bias"):
            key = f"transformer.{name}.{kind}"
            if key in theirs:
                is_conv1d = theirs[key].ndim == 2 and ".h." in key
                weights[f"{ours}.{kind}"] = theirs[key].T if is_conv1d else theirs[key]
    return weights


def test_gpt2_style_matches_hugging_face() -> None:
    model, tokens = make(style="gpt2"), random_tokens()
    twin = hugging_face_twin(model)
    weights = weights_of(twin)
    assert sum(w.numel() for w in weights.values()) == sum(w.numel() for w in twin.state_dict().values())
    model.load_state_dict(weights, strict=True)
    expected = twin(tokens).logits
    assert expected.std() > 0.5
    torch.testing.assert_close(model(tokens)[0], expected, atol=1e-5, rtol=1e-5)


def test_gpt2_style_gradients_match_hugging_face() -> None:
    model, tokens = make(style="gpt2"), random_tokens()
    twin = hugging_face_twin(model)
    model.load_state_dict(weights_of(twin), strict=True)
    for logits in (model(tokens)[0], twin(tokens).logits):
        F.cross_entropy(logits.flatten(0, 1), tokens.roll(-1, 1).flatten()).backward()
    ours, theirs = model.embedding.weight.grad, twin.transformer.wte.weight.grad  # tied with the head
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    qkv, conv = model.blocks[0].attention.qkv, twin.transformer.h[0].attn.c_attn
    torch.testing.assert_close(qkv.weight.grad, conv.weight.grad.T, atol=1e-5, rtol=1e-4)
    assert model.n_parameters() == twin.num_parameters()


# --- modern, against its equations ---------------------------------------------------------------


def rms(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def rotate(x_BHTD: Tensor) -> Tensor:
    """Rotary embedding as in Su et al. 2021: complex numbers times exp(i m theta)."""
    length, width = x_BHTD.shape[-2:]
    theta = 10000.0 ** (-2 * torch.arange(width // 2, dtype=torch.float64) / width)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * theta
    real, imaginary = x_BHTD.double().split(width // 2, dim=-1)
    rotated = torch.complex(real, imaginary) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([rotated.real, rotated.imag], dim=-1)


def short_conv(x_BTC: Tensor, weight_KC: Tensor) -> Tensor:
    """The short convolution with ``F.conv1d``, whose last tap is the current token."""
    width, channels = weight_KC.shape
    padded = F.pad(x_BTC.mT, (width - 1, 0))
    return x_BTC + F.conv1d(padded, weight_KC.flip(0).T[:, None], groups=channels).mT


def modern_reference(model: Transformer, tokens_BT: Tensor) -> Tensor:
    batch, length = tokens_BT.shape
    heads = model.config.n_head
    x = rms(model.embedding.weight[tokens_BT])
    for block in model.blocks:
        h = short_conv(rms(x), block.convs[0].weight) if block.convs else rms(x)
        parts = (h @ block.attention.qkv.weight.T).chunk(3, dim=-1)
        q, k, v = (part.view(batch, length, heads, -1).transpose(1, 2) for part in parts)
        q, k = model.config.score_scale * rotate(rms(q)), rotate(rms(k))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        if block.attention.gate is not None:
            attended = attended * 2 * (h @ block.attention.gate.T).sigmoid().mT[..., None]
        x = x + attended.transpose(1, 2).flatten(2) @ block.attention.out.weight.T
        h = short_conv(rms(x), block.convs[1].weight) if block.convs else rms(x)
        x = x + (h @ block.feed_forward.up.weight.T).relu() ** 2 @ block.feed_forward.down.weight.T
    return rms(x) @ model.head.weight.T


@pytest.mark.parametrize(
    "settings", [{"conv": 1, "gate": False}, {"conv": 2, "score_scale": 1.0}, {"conv": 4, "score_scale": 5.0}]
)
def test_modern_style_matches_its_equations(settings: dict[str, Any]) -> None:
    model, tokens = make(**settings).double(), random_tokens()
    expected = modern_reference(model, tokens)
    assert expected.std() > 0.5
    torch.testing.assert_close(model(tokens)[0], expected, atol=1e-5, rtol=1e-5)  # float32 rotary table


def test_modern_style_has_matrices_only() -> None:
    model = make()
    assert all(parameter.ndim == 2 for parameter in model.parameters())
    assert model.head.weight is not model.embedding.weight


# --- attention -----------------------------------------------------------------------------------


def test_attention_matches_pytorch() -> None:
    q, k, v = normal(3, 2, 4, 7, 6)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    for bias in (None, causal_bias(7, q.device).double()):
        torch.testing.assert_close(attend(q, k, v, bias, 0.0), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("style", ["modern", "gpt2"])
def test_one_document_per_row_gives_the_same_results(style: str) -> None:
    """``one_document_per_row`` skips the document mask and gives bit-identical results outside padding."""
    model = make(style=style)
    tokens = random_tokens()
    tokens[1, 9:] = 0
    targets = tokens.roll(-1, 1)
    targets[1, 8:] = IGNORE_INDEX
    results = []
    for one_document in (False, True):
        model.one_document_per_row = one_document
        model.zero_grad(set_to_none=True)
        logits, _ = model(tokens)
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        results.append([logits[targets != IGNORE_INDEX], *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    # The flag has no effect on calls with a state.
    state = model.init_state(3, 16)
    torch.testing.assert_close(model(tokens, state)[0][0], results[0][0][:16])


def test_attention_over_a_cache_with_a_different_position_per_row() -> None:
    starts, new, capacity = torch.tensor([0, 3, 5]), 2, 8
    document_starts = torch.tensor([[0, 0], [2, 2], [1, 6]])  # start of each query's document
    q, (k, v) = normal(3, 4, new, 6), normal(2, 3, 4, new, 6, seed=3)
    caches = (normal(3, 4, capacity, 6, seed=4), normal(3, 4, capacity, 6, seed=5))
    old_caches = [cache.clone() for cache in caches]
    write_cache(caches[0], k, starts)
    write_cache(caches[1], v, starts)
    bias = document_causal_bias(starts[:, None] + torch.arange(new), document_starts, capacity)
    output = attend(q, *caches, bias.double(), 0.0)
    for row, start in enumerate(starts.tolist()):
        keys, values = (
            torch.cat([old[row, :, :start], fresh[row]], dim=1)
            for old, fresh in zip(old_caches, (k, v), strict=True)
        )
        for t in range(new):
            span = slice(int(document_starts[row, t]), start + t + 1)
            expected = F.scaled_dot_product_attention(q[row, :, t : t + 1], keys[:, span], values[:, span])
            torch.testing.assert_close(output[row, :, t : t + 1], expected, atol=1e-12, rtol=0)


def test_rope_matches_complex_multiplication() -> None:
    x = normal(2, 3, 50, 8)
    cos, sin = rope_table(50, 8)
    torch.testing.assert_close(apply_rope(x, cos.double(), sin.double()), rotate(x), atol=1e-5, rtol=0)


def test_rope_scores_depend_only_on_distance() -> None:
    q, k = normal(2, 1, 1, 1, 8)
    cos, sin = (table.double() for table in rope_table(60, 8))
    q, k = (apply_rope(x.expand(1, 1, 60, 8), cos, sin)[0, 0] for x in (q, k))
    scores = q @ k.T
    for distance in (-20, -1, 0, 1, 33):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=0)
    assert scores[0].std() > 0.1


def test_rope_preserves_norm_and_dtype() -> None:
    x = normal(2, 3, 50, 8)
    cos, sin = rope_table(50, 8)
    torch.testing.assert_close(apply_rope(x, cos, sin).norm(dim=-1), x.norm(dim=-1), atol=1e-6, rtol=0)
    assert apply_rope(x.bfloat16(), cos, sin).dtype == torch.bfloat16


# --- packed documents ----------------------------------------------------------------------------


@STYLES
def test_packed_documents_give_the_same_logits_as_separate_rows(style: str) -> None:
    model = make(style=style).double()
    documents = [random_tokens(1, length, seed=length) for length in (5, 1, 7, 3)]
    packed = torch.cat(documents, dim=1)
    expected = torch.cat([model(document)[0] for document in documents], dim=1)
    torch.testing.assert_close(model(packed)[0], expected, atol=1e-5, rtol=1e-5)  # float32 rotary table


@STYLES
def test_gradients_do_not_cross_packed_documents(style: str) -> None:
    model = make(style=style)
    model(torch.cat([random_tokens(1, 5), torch.tensor([[0, 1, 2]])], dim=1))[0][:, 5:].sum().backward()
    has_grad = model.embedding.weight.grad.abs().sum(1) > 0
    if style == "modern":  # a tied head reaches every row
        assert has_grad.nonzero().flatten().tolist() == [0, 1, 2]
    qkv = model.blocks[0].attention.qkv
    alone = make(style=style)
    alone(torch.tensor([[0, 1, 2]]))[0].sum().backward()
    expected = alone.blocks[0].attention.qkv.weight.grad
    torch.testing.assert_close(qkv.weight.grad, expected, atol=1e-4, rtol=1e-4)


# --- limits, initialisation, dropout and recipe --------------------------------------------------


@STYLES
def test_inputs_longer_than_block_size_are_rejected(style: str) -> None:
    model = make(style=style)
    with pytest.raises(ValueError, match="17 tokens"):
        model(random_tokens(length=17))
    with pytest.raises(ValueError, match="17 tokens"):
        model(random_tokens(length=17), model.init_state(3, 17))


@STYLES
@pytest.mark.parametrize(("capacity", "length"), [(16, 12), (6, 2)])
def test_exceeding_the_state_capacity_raises(style: str, capacity: int, length: int) -> None:
    model = make(style=style)
    _, state = model(random_tokens(length=5), model.init_state(3, capacity))
    with pytest.raises((ValueError, IndexError)):
        model(random_tokens(length=length), state)


@STYLES
@pytest.mark.parametrize("capacity", [5, 100])
def test_state_has_the_requested_capacity_up_to_block_size(style: str, capacity: int) -> None:
    position, start, *layers = make(style=style).init_state(2, capacity)
    assert position.tolist() == start.tolist() == [0, 0]
    cache, conv_tail = (2, 4, min(capacity, 16), 8), (2, 3, 32)
    layer = [cache, cache, conv_tail, conv_tail] if style == "modern" else [cache, cache]
    assert [part.shape for part in layers] == layer * 3


@STYLES
def test_initial_loss_is_ln_v(style: str) -> None:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(style=style), 65, 0)
    tokens = torch.randint(65, (8, 129))
    loss = F.cross_entropy(model(tokens[:, :-1])[0].flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(65), abs=1e-5 if style == "modern" else 0.1)


def test_gpt2_initialisation_matches_the_paper() -> None:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(style="gpt2", n_layer=2), 65, 0)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert parameter.unique().tolist() == [1.0 if name.endswith("weight") else 0.0], name
        else:
            residual = name.endswith(("out.weight", "down.weight"))  # scaled by 1 / sqrt(2 n_layer)
            assert parameter.std().item() == pytest.approx(0.01 if residual else 0.02, rel=0.05), name


@STYLES
def test_dropout_applies_only_in_training(style: str) -> None:
    model, without_dropout, tokens = make(style=style, dropout=0.5), make(style=style), random_tokens()
    assert torch.equal(model(tokens)[0], without_dropout(tokens)[0])
    model.train()
    assert not torch.allclose(model(tokens)[0], model(tokens)[0])
    assert torch.equal(without_dropout.train()(tokens)[0], without_dropout(tokens)[0])


def test_attention_dropout_is_unbiased() -> None:
    torch.manual_seed(0)
    q, k, v = normal(3, 2, 4, 7, 6)
    bias = causal_bias(7, q.device).double()
    mean = torch.stack([attend(q, k, v, bias, 0.3) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, attend(q, k, v, bias, 0.0), atol=0.1, rtol=0)


@STYLES
def test_muon_parameters_are_the_block_matrices(style: str) -> None:
    model = make(style=style)
    kinds = ("attention.qkv", "attention.out", "feed_forward.up", "feed_forward.down")
    expected = {f"blocks.{i}.{kind}.weight" for i in range(3) for kind in kinds}
    assert set(model.muon_parameters()) == expected
    assert expected <= set(dict(model.named_parameters()))


@pytest.mark.parametrize(
    "settings", [{"n_layer": 0}, {"block_size": 0}, {"n_embd": 36}, {"dropout": 1.0}, {"dropout": -0.1}]
)
def test_invalid_settings_are_rejected(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        TransformerConfig(**settings)


def test_the_recipe_adds_dropout_when_text_is_repeated_often() -> None:
    def dropout(mode: Any, seconds: float, tokens: int) -> float:
        stats = CorpusStats(mode, tokens, 27, tokens // 7, 16, "cpu", max_time=seconds)
        return Transformer.recipe(stats).model.dropout

    assert dropout("lines", 13.0, 228_000) == dropout("lines", 90.0, 5_000_000) == 0.1
    assert dropout("lines", 300.0, 228_000) == 0.3
    assert dropout("text", 300.0, 1_000_000) == 0.0
    assert dropout("text", 60.0, 225_000) == 0.09
    assert dropout("text", 60.0, 30_000) == dropout("lines", 60.0, 30_000) == 0.35


def test_the_recipe_has_no_jumps() -> None:
    for tokens in (30_000, 200_000, 1_000_000):
        recipes = [
            Transformer.recipe(CorpusStats("text", tokens, 66, 1, tokens, "cpu", max_time=1.05**i))
            for i in range(140)
        ]
        for before, after in itertools.pairwise(recipes):
            if before.model.n_embd == after.model.n_embd:
                assert 0 <= after.model.dropout - before.model.dropout < 0.02
                assert 1 <= after.train.optimizer.weight_decay / before.train.optimizer.weight_decay < 1.2


@pytest.mark.parametrize(
    ("tokens", "device", "budget", "width"),
    [
        (1_000_000, "cpu", {"max_time": 60.0}, 96),
        (1_000_000, "cpu", {"max_time": 90.0}, 128),
        (1_000_000, "cpu", {"max_time": 300.0}, 128),
        (1_000_000, "cpu", {"steps": 20_000}, 128),  # limited by the text's size
        (1_000_000, "cpu", {"steps": 300}, 64),
        (1_000_000, "cpu", {"max_time": 13.0}, 64),
        (1_000_000, "cuda", {"max_time": 3600.0}, 256),
        (500_000_000, "cpu", {"max_time": 3600.0}, 256),
        (500_000_000, "cuda", {"max_time": 3600.0}, 768),
    ],
)
def test_the_recipe_widens_with_text_and_budget(tokens, device, budget, width) -> None:
    config = Transformer.recipe(CorpusStats("text", tokens, 66, 1, tokens, device, **budget)).model
    assert config.n_embd == width
    for n_embd in (32, 64, 96, 128):  # the head count still divides other widths
        assert n_embd % (2 * config.n_head) == 0 or width > 256


def test_a_gpu_sees_a_text_thirty_times_at_most() -> None:
    """With more, training loss fell on and validation loss rose (an H200, 60 s, 170 epochs)."""

    def recipe(tokens: int, **budget: float) -> Recipe:
        return Transformer.recipe(CorpusStats("text", tokens, 66, 1, tokens, "cuda", **budget))

    for tokens in (30_000, 1_000_000, 500_000_000):
        train = recipe(tokens, max_time=3600.0).train
        assert train.steps is not None
        assert 30 <= train.steps * train.data.batch_tokens / tokens < 31 + train.data.batch_tokens / tokens
    assert recipe(1_000_000, max_time=3600.0).train.data.batch_tokens == 4096
    assert recipe(500_000_000, max_time=3600.0).train.data.batch_tokens == 16384
    assert recipe(1_000_000, steps=100).train.steps == 100
    assert recipe(1_000_000, max_time=60.0).model.dropout == 0.3
