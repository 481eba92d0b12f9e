"""The numbers behind the pictures, against independent computations."""

from __future__ import annotations

import dataclasses
import math
import tracemalloc

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from makemore.corpus.rows import Rows, to_batch
from makemore.inspection.capture import record_activations
from makemore.inspection.figures import BOUNDARY, label
from makemore.inspection.pictures import (
    activations,
    attention,
    bigrams,
    embeddings,
    gates,
    losses,
    orders,
    parameters,
    reach,
    updates,
)
from makemore.inspection.subject import Subject, Update
from makemore.models import MODELS
from makemore.models.count import Count
from makemore.models.smoothing import CountConfig, SmoothedNgrams
from makemore.tokenizers import fit_tokenizer
from makemore.types import IGNORE_INDEX, Batch, Split
from tests.conformance.fixtures import VOCAB, documents, nonzero_model
from tests.interop.nonzero_models import nonzero_transformer

ALL_TOKENS = np.arange(VOCAB)
TOKENIZER = fit_tokenizer("char", ["abcdefghij"])


def batch(rows: int = 8, length: int = 12) -> Batch:
    tokens = documents(rows, length)
    return Batch(tokens[:, :-1], tokens[:, 1:])


def make_split(rows: torch.Tensor) -> Split:
    """Make a split of target rows (D, T), one document per row."""
    d, t = rows.shape
    lengths = np.full(d, t)
    return Split("train", rows.flatten().numpy().astype(np.uint8), np.arange(d) * t, lengths, lengths)


# --- losses ---------------------------------------------------------------------------------------


def records(val_losses: list[float], train_losses: list[float], first: float = math.log(VOCAB)) -> list[dict]:
    first_record = [{"step": 1, "loss": first}]
    return first_record + [
        {"step": 100 * i, "loss": train, "val": val}
        for i, (val, train) in enumerate(zip(val_losses, train_losses, strict=True), start=1)
    ]


def interpret_end(vals: list[float], trains: list[float]) -> str:
    subject = Subject(
        model_name="mlp",
        model=nonzero_model("mlp"),
        tokenizer=TOKENIZER,
        tokens_T=torch.zeros(3),
        records=records(vals, trains),
    )
    return " ".join(finding.text for finding in losses.interpret_end(subject))


def test_overfitting_is_reported_with_its_first_step() -> None:
    finding = interpret_end([2.0, 1.8, 1.7, 1.8, 1.9], [2.0, 1.8, 1.6, 1.2, 0.9])
    assert "overfitting since step 300: val rose by 0.200" in finding


def test_train_and_val_are_compared_with_the_same_weights() -> None:
    """Memorisation is measured; val below the logged train loss, as with dropout, is explained."""
    tokenizer = fit_tokenizer("char", ["abcdefghi"])
    model = Count(CountConfig(order=6), tokenizer.vocab_size, 0).eval()
    train, val = (
        make_split(torch.randint(1, 10, (30, 12), generator=torch.Generator().manual_seed(n))) for n in (0, 1)
    )
    batch = to_batch(train, Rows(train.starts_D, train.starts_D, train.ends_D), 0)
    model.count_batch(batch)
    model.finish()
    subject = Subject(
        model_name="count",
        model=model,
        tokenizer=tokenizer,
        tokens_T=torch.zeros(3),
        records=[],
        train=train,
        val=val,
    )
    memorised = losses.interpret_gap(subject, 0.1)
    assert [finding.kind for finding in memorised] == ["warning"]
    assert "memorisation" in memorised[0].text
    alike = dataclasses.replace(subject, val=train)
    assert losses.interpret_gap(alike, 0.1) == []
    (explained,) = losses.interpret_gap(alike, 9.0)
    assert explained.kind == "note"
    assert "logged while the weights changed, ended at 9.000, above val" in explained.text


def test_falling_loss_is_reported() -> None:
    vals = [2.0 - 0.05 * i for i in range(20)]
    assert "still falling" in interpret_end(vals, vals)


def test_converged_loss_is_reported() -> None:
    assert "converged at 1.700 by step 400" in interpret_end(
        [2.0, 1.8, 1.701, 1.7, 1.705], [2.0, 1.8, 1.7, 1.7, 1.7]
    )


@pytest.mark.parametrize(
    ("first", "kind", "message"),
    [
        (2.4, "good", "good init"),
        (9.0, "warning", "overconfident"),
        (1.0, "note", "didn't start from random"),
    ],
)
def test_first_loss_is_compared_with_ln_v(first: float, kind: str, message: str) -> None:
    (finding,) = losses.interpret_start(records([2.0], [2.0], first), VOCAB)
    assert (finding.kind, message in finding.text) == (kind, True)


def test_smoothing_keeps_lines_and_steep_starts() -> None:
    line = [3.0 - 0.1 * i for i in range(60)]
    assert losses.smoothed(line) == pytest.approx(line)
    zigzag = losses.smoothed([2.0 + 0.5 * (-1) ** i for i in range(60)])
    assert max(abs(x - 2.0) for x in zigzag[12:-3]) < 0.11
    falling = [1 + math.exp(-i) for i in range(60)]
    assert losses.smoothed(falling)[:4] == falling[:4]  # a steep start isn't smoothed away
    assert losses.final_mean(line) == pytest.approx(sum(line[-3:]) / 3)


# --- activations and attention --------------------------------------------------------------------


def test_nonlinearities_are_recorded_by_layer() -> None:
    model = nonzero_transformer(VOCAB)
    with record_activations(model) as recorded:
        model(batch().inputs_BT)
    parts = [("attention", "sigmoid"), ("feed_forward", "relu")]
    expected = [(f"blocks.{i}.{part}", kind) for i in range(2) for part, kind in parts]
    assert [(a.layer, a.kind) for a in recorded()] == expected
    assert not model._forward_hooks
    with record_activations(model) as recorded:
        pass
    assert recorded() == []


def test_saturation_and_dead_units_are_counted() -> None:
    stage = activations.LayerActivations("x", "tanh", torch.tensor([[0.99, 0.5, -0.98], [0.999, 0.98, -0.2]]))
    assert stage.share == pytest.approx(4 / 6)
    assert stage.dead == 1
    assert activations.is_saturated("sigmoid", torch.tensor([0.99, 0.5, 0.01])).tolist() == [
        True,
        False,
        True,
    ]
    assert activations.is_saturated("relu", torch.tensor([0.0, 0.1])).tolist() == [True, False]


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_is_dead_where_it_is_flat(approximate: str) -> None:
    """A negative output isn't enough: the slope there can still be steep."""
    inputs = torch.tensor([[-1.0, -4.0, 2.0, -9.0], [-0.5, -3.1, -6.0, -1.0], [-2.0, -5.0, -7.0, -20.0]])
    stage = activations.LayerActivations("x", "gelu", F.gelu(inputs, approximate=approximate))
    assert stage.saturated_NH.tolist() == (inputs < -3).tolist()
    assert stage.dead == 1


def test_layers_without_a_plot_are_judged_too() -> None:
    layers = activations.MAX_LAYERS + 2
    model = nonzero_transformer(VOCAB, n_layer=layers)
    with torch.no_grad():
        model.blocks[-1].feed_forward.up.weight[5] = 0
    plots = activations.plot(
        Subject(
            model_name="transformer",
            model=model,
            tokenizer=TOKENIZER,
            tokens_T=torch.zeros(3),
            records=[],
            batch=batch(),
        )
    )
    assert plots is not None
    assert len(plots.figure.axes) == 2 * activations.MAX_LAYERS
    assert any(finding.text.startswith(f"blocks.{layers - 1}.") for finding in plots.findings)


@pytest.mark.parametrize(
    "name", ["mlp", "batchnorm-mlp", "bow", "wavenet", "rnn", "gru", "lstm", "transformer"]
)
def test_every_model_with_nonlinearities_has_activations(name: str) -> None:
    model, data = nonzero_model(name), batch()
    inputs, targets = data.inputs_BT, data.targets_BT.clone()
    targets[0, 3:] = IGNORE_INDEX
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    stages = activations.stages(model, Batch(inputs, targets))
    assert stages
    for stage in stages:
        assert len(stage.values_NH) == int((targets != IGNORE_INDEX).sum())
    assert len({stage.name for stage in stages}) == len(stages)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_saturated_layer_is_reported() -> None:
    layer = activations.LayerActivations(
        "tanh 1", "tanh", torch.randn(200, 30, generator=torch.Generator().manual_seed(0)).mul(4).tanh()
    )
    findings = [v.text for v in activations.interpret([], [layer])]
    assert "before training tanh 1 is saturated at" in findings[0]
    assert "lower the initial scale" in findings[0]


def test_saturation_after_training_is_a_fault_only_of_dead_units() -> None:
    values = torch.randn(200, 30, generator=torch.Generator().manual_seed(0)).mul(4).tanh()
    layer = activations.LayerActivations("tanh 1", "tanh", values)
    (finding,) = activations.interpret([layer], [])
    assert (finding.kind, layer.share > 0.5) == ("note", True)
    dead = activations.LayerActivations("tanh 1", "tanh", torch.ones(200, 30))
    (finding,) = activations.interpret([dead], [])
    assert (finding.kind, finding.text) == ("warning", "tanh 1: 30 of 30 units are dead on this batch")


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_unrolled_recurrent_layers_match_pytorch(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    layers = kind(5, 7, num_layers=2, batch_first=True)
    x = torch.randn(3, 9, 5)
    unrolled = gates.unroll(layers, x)
    torch.testing.assert_close(unrolled[-1]["hidden"], layers(x)[0], atol=1e-6, rtol=1e-5)
    assert len(unrolled) == 2


def test_recomputed_attention_matches_the_model() -> None:
    for style in ("modern", "gpt2"):
        model = nonzero_transformer(VOCAB, style=style, gate=False)
        tokens = documents(2, 20)
        tokens[1, 7] = 0  # a second document starts here
        weights = attention.attention_weights(model, tokens)
        assert weights.shape == (2, 2, 2, 21, 21)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 2, 21))
        assert weights.triu(1).abs().max() == 0
        assert weights[:, 1, :, 7:, :7].abs().max() == 0
        with torch.no_grad():
            calls: list = []
            for block in model.blocks:
                block.attention.out.register_forward_pre_hook(
                    lambda m, args, calls=calls: calls.append(args[0])
                )
                block.attention.qkv.register_forward_hook(lambda m, args, out, calls=calls: calls.append(out))
            model(tokens)
        for layer in range(2):
            qkv, attn_out = calls[2 * layer], calls[2 * layer + 1]
            v = qkv.chunk(3, dim=-1)[2].view(2, 21, 2, -1).transpose(1, 2)
            expected = (weights[layer] @ v).transpose(1, 2).reshape(2, 21, -1)
            torch.testing.assert_close(attn_out, expected, atol=1e-5, rtol=1e-5)


def test_heads_are_described_by_their_pattern() -> None:
    previous = np.eye(9, k=-1)
    previous[0, 0] = 1
    first = np.zeros((9, 9))
    first[:, 0] = 1
    uniform = np.tril(np.ones((9, 9)))
    uniform /= uniform.sum(1, keepdims=True)
    texts = [v.text for v in attention.interpret(np.stack([previous, first, uniform])[None])]
    assert texts == [
        "layer 0, head 0 attends to the previous token (100%)",
        "layer 0, head 1 attends to the boundary (100%)",
        "layer 0, head 2 spreads its attention evenly",
    ]


# --- reach ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "limit"), [("mlp", 8), ("batchnorm-mlp", 3), ("wavenet", 8), ("bow", 8)])
def test_tokens_beyond_the_context_have_no_influence(name: str, limit: int) -> None:
    shares = reach.influence(nonzero_model(name), batch(length=20))
    assert shares.sum() == pytest.approx(1)
    assert (shares[:limit] > 0).all()
    assert shares[limit:].sum() == 0


def test_influence_matches_separate_gradients() -> None:
    model, data = nonzero_model("lstm"), batch(5, 6)
    shares = reach.influence(model, data)
    total = np.zeros(6)
    for row in range(5):
        for t in range(6):
            embedded = model.embedding(data.inputs_BT[row : row + 1]).detach().requires_grad_()
            logits = model.head(model.layers(embedded)[0])
            F.cross_entropy(logits[0, t], data.targets_BT[row, t]).backward()
            for distance in range(t + 1):
                total[distance] += float(embedded.grad[0, t - distance].norm()) / (5 * (6 - distance))
    np.testing.assert_allclose(shares, total / total.sum(), rtol=1e-4)


# --- embeddings, bigrams, orders, parameters, updates ----------------------------------------------


def test_components_are_eigenvectors_of_the_covariance() -> None:
    rows = np.random.default_rng(0).normal(size=(20, 5)) @ np.diag([5, 3, 1, 0.5, 0.1])
    points, shares = embeddings.project(rows)
    values, vectors = np.linalg.eigh(np.cov(rows.T, bias=True))
    np.testing.assert_allclose(shares, values[::-1][:2] / values.sum())
    expected = (rows - rows.mean(0)) @ vectors[:, ::-1][:, :2]
    np.testing.assert_allclose(np.abs(points), np.abs(expected), atol=1e-9)


def test_only_embeddings_more_similar_than_by_chance_are_named() -> None:
    subject = Subject(
        model_name="mlp",
        model=nonzero_model("mlp"),
        tokenizer=TOKENIZER,
        tokens_T=torch.zeros(3),
        records=[],
    )
    shown = np.arange(VOCAB)
    n_named = 0
    for seed in range(40):
        rows = np.random.default_rng(seed).normal(size=(VOCAB, 8))
        (finding,) = embeddings.interpret(subject, rows, shown)
        n_named += "most similar" in finding.text
    assert n_named <= 6  # 5% of 40 expected
    rows[3] = rows[5] + 0.01
    (finding,) = embeddings.interpret(subject, rows, shown)
    assert "(1.00)" in finding.text


def test_the_share_of_the_variance_that_the_picture_explains_is_reported() -> None:
    assert embeddings.explained(np.array([0.5, 0.25])).text == "the two axes explain 75% of the variance"
    assert "may be far apart" in embeddings.explained(np.array([0.1, 0.1])).text


@pytest.mark.parametrize("width", [1, 2])
def test_narrow_embeddings_also_have_two_components(width: int) -> None:
    points, shares = embeddings.project(np.random.default_rng(0).normal(size=(6, width)))
    assert points.shape == (6, 2)
    assert shares.sum() == pytest.approx(1)


def test_labels_are_pushed_apart() -> None:
    points = np.random.default_rng(0).normal(size=(40, 2)) * 0.2
    size = np.array([0.1, 0.08])
    positions = embeddings.place_labels(points, size)
    gaps = (np.abs(positions[:, None] - positions[None]) / size).max(-1) + 2 * np.eye(40)
    assert gaps.min() > 0.8
    assert np.abs(positions - points).max() < 1


def test_pairs_are_counted_within_documents() -> None:
    rows = torch.tensor([[1, 2, 0], [2, 2, 0]])
    pairs = bigrams.pairs_of(make_split(rows), 0)
    counts = bigrams.pair_counts(pairs, ALL_TOKENS, VOCAB)
    expected = {(0, 1): 1, (1, 2): 1, (2, 0): 2, (0, 2): 1, (2, 2): 1}
    assert {pair: int(n) for pair, n in np.ndenumerate(counts) if n} == expected


def test_mean_predictions_of_a_bigram_are_its_rows() -> None:
    model = nonzero_model("bigram")
    means = bigrams.mean_predictions(model, batch(32), ALL_TOKENS)
    np.testing.assert_allclose(means, model.W.detach().double().softmax(-1).numpy(), rtol=1e-5)
    assert np.isnan(bigrams.mean_predictions(model, batch(1, 3), ALL_TOKENS)).any()
    tokens = np.array([7, 3])
    np.testing.assert_array_equal(bigrams.mean_predictions(model, batch(32), tokens), means[tokens])


def test_pairs_of_a_large_vocabulary_need_little_memory() -> None:
    vocab_size = 4000
    model_class = MODELS.get("mlp")
    model = model_class(model_class.Config(), vocab_size, 0)
    rows = documents(60, 12)[:, 1:]
    subject = Subject(
        model_name="mlp",
        model=model,
        tokenizer=TOKENIZER,
        tokens_T=torch.zeros(3),
        records=[],
        train=make_split(rows),
        batch=batch(),
    )
    tracemalloc.start()
    picture = bigrams.plot(subject)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert picture is not None
    assert picture.findings
    assert peak_bytes < vocab_size**2 * 8 / 2


def test_order_contributions_sum_to_the_probability() -> None:
    torch.manual_seed(0)
    rows = torch.cat([torch.randint(1, 5, (60, 9)), torch.zeros(60, 1, dtype=torch.long)], dim=1)
    for smoothing in ("kneser-ney", "additive"):
        model = Count(CountConfig(order=4, smoothing=smoothing), VOCAB, 0)  # type: ignore[arg-type]
        inputs = torch.cat([torch.zeros(60, 1, dtype=torch.long), rows[:, :-1]], dim=1)
        model.count_batch(Batch(inputs, rows))
        model.finish()
        contexts, targets = orders.positions(model, make_split(rows[:10].flip(1).roll(-1, 1)))
        shares, frequencies = orders.contributions(model.smoothed, contexts, targets)
        assert shares.sum() == pytest.approx(1)
        assert frequencies.sum() == pytest.approx(1)
        by_order = orders.order_losses(model, contexts, targets)
        assert by_order[-1] == pytest.approx(-np.log(model.smoothed.target_probs(contexts, targets)).mean())
        unigrams = SmoothedNgrams(model.table, model.config.replace(order=1))
        assert by_order[0] == pytest.approx(-np.log(unigrams.target_probs(contexts[:1], targets)).mean())


def test_gradients_match_autograd_and_zero_ones_are_reported() -> None:
    model, data = nonzero_model("mlp"), batch()
    grads = parameters.gradients(model, data)
    assert all(p.grad is None for p in model.parameters())
    model.zero_grad()
    logits = model(data.inputs_BT)[0]
    F.cross_entropy(logits.flatten(0, 1), data.targets_BT.flatten()).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(grads[name], p.grad)
    grads["head.bias"] = torch.zeros(VOCAB)
    findings = [v.text for v in parameters.interpret(grads, dict(model.named_parameters()))]
    assert "no gradient reaches head.bias" in findings


def test_quantiles_are_of_log10_magnitudes() -> None:
    box = parameters.quantiles(torch.tensor([0.0, 0.1, -0.1, 0.1]))
    assert box["med"] == pytest.approx(-1)
    assert math.isnan(parameters.quantiles(torch.zeros(3))["med"])


@pytest.mark.parametrize(
    ("ratio", "message"),
    [(1e-3, "about 10^-3.0"), (1e-6, "learning rate too small"), (0.5, "w changes by 10^-0.3")],
)
def test_update_ratio_is_judged(ratio: float, message: str) -> None:
    (finding,) = updates.interpret([Update("w", np.array([np.nan] + 50 * [ratio]))])
    assert message in finding.text


def test_fast_matrices_share_one_finding() -> None:
    (finding,) = updates.interpret([Update(f"w{n}", np.full(50, n / 4)) for n in (1, 2, 3)])
    assert finding.text == "w3 and 2 more matrices change by up to 10^-0.1 per step: learning rate too large"


def test_matrix_initialized_at_zero_is_not_too_fast() -> None:
    growing = Update("w", np.array([np.nan, *1 / np.arange(1, 100)]))
    assert updates.interpret([growing])[0].kind == "good"
    short = Update("w", growing.ratio_S[:20])
    assert "too few" in updates.interpret([short])[0].text


@pytest.mark.parametrize(
    ("token", "expected"), [(0, BOUNDARY), (1, "⏎"), (2, "␣"), (3, r"\$"), (4, "a"), (5, "é"), (6, "65E5")]
)
def test_labels_are_readable(token: int, expected: str) -> None:
    assert label(fit_tokenizer("char", ["a $é日\n"]), token) == expected
