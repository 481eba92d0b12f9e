"""What the pictures are made of, against independent computations."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

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
from makemore.models.count import Count, CountConfig
from makemore.tokenizers import fit_tokenizer
from makemore.types import IGNORE_INDEX, Batch, Split
from tests.conformance.fixtures import VOCAB, documents, nonzero_model
from tests.interop.nonzero_models import loud_transformer

EVERY = np.arange(VOCAB)
TOKENIZER = fit_tokenizer("char", ["abcdefghij"])


def batch(rows: int = 8, length: int = 12) -> Batch:
    tokens = documents(rows, length)
    return Batch(tokens[:, :-1], tokens[:, 1:])


def split_of(rows: torch.Tensor) -> Split:
    """Rows (D, T) of targets as a split."""
    d, t = rows.shape
    each = np.full(d, t)
    return Split("train", rows.flatten().numpy().astype(np.uint8), np.arange(d) * t, each, each)


# --- losses ---------------------------------------------------------------------------------------


def records(vals: list[float], trains: list[float], first: float = math.log(VOCAB)) -> list[dict]:
    made = [{"step": 1, "loss": first}]
    return made + [
        {"step": 100 * i, "loss": train, "val": val}
        for i, (val, train) in enumerate(zip(vals, trains, strict=True), start=1)
    ]


def judged(vals: list[float], trains: list[float]) -> str:
    subject = Subject("x", "mlp", nonzero_model("mlp"), TOKENIZER, torch.zeros(3), records(vals, trains))
    return " ".join(verdict.text for verdict in losses.judge_end(subject))


def test_overfitting_is_told_from_its_step_on() -> None:
    said = judged([2.0, 1.8, 1.7, 1.8, 1.9], [2.0, 1.8, 1.6, 1.2, 0.9])
    assert "overfitting since step 300: val rose by 0.200" in said
    assert "memorisation" in said


def test_a_loss_that_still_falls_is_told() -> None:
    vals = [2.0 - 0.05 * i for i in range(20)]
    assert "still falling" in judged(vals, vals)


def test_a_loss_at_rest_is_told() -> None:
    assert "converged at 1.700 by step 400" in judged(
        [2.0, 1.8, 1.701, 1.7, 1.705], [2.0, 1.8, 1.7, 1.7, 1.7]
    )


@pytest.mark.parametrize(
    ("first", "kind", "said"),
    [
        (2.4, "good", "good init"),
        (9.0, "warning", "overconfident"),
        (1.0, "note", "didn't start from random"),
    ],
)
def test_the_first_loss_is_held_against_ln_v(first: float, kind: str, said: str) -> None:
    (verdict,) = losses.judge_start(records([2.0], [2.0], first), VOCAB)
    assert (verdict.kind, said in verdict.text) == (kind, True)


def test_smoothing_neither_lags_nor_moves_a_line() -> None:
    line = [3.0 - 0.1 * i for i in range(60)]
    assert losses.smoothed(line) == pytest.approx(line)
    zigzag = losses.smoothed([2.0 + 0.5 * (-1) ** i for i in range(60)])
    assert max(abs(x - 2.0) for x in zigzag[12:-3]) < 0.11
    falling = [1 + math.exp(-i) for i in range(60)]
    assert losses.smoothed(falling)[:4] == falling[:4]  # nor is a steep beginning smoothed away
    assert losses.final_mean(line) == pytest.approx(sum(line[-3:]) / 3)


# --- what flows through ---------------------------------------------------------------------------


def test_nonlinearities_are_seen_where_they_are() -> None:
    model = loud_transformer(VOCAB)
    with record_activations(model) as seen:
        model(batch().inputs_BT)
    assert [(a.layer, a.kind) for a in seen()] == [(f"blocks.{i}.feed_forward", "relu") for i in range(2)]
    assert not model._forward_hooks
    with record_activations(model) as seen:
        pass
    assert seen() == []


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
def test_a_gelu_is_dead_where_it_is_flat(approximate: str) -> None:
    """Not wherever its output is below 0, where it is steep still."""
    inputs = torch.tensor([[-1.0, -4.0, 2.0, -9.0], [-0.5, -3.1, -6.0, -1.0], [-2.0, -5.0, -7.0, -20.0]])
    stage = activations.LayerActivations("x", "gelu", F.gelu(inputs, approximate=approximate))
    assert stage.saturated_NH.tolist() == (inputs < -3).tolist()
    assert stage.dead == 1


def test_layers_that_are_not_drawn_are_judged_too() -> None:
    layers = activations.MAX_LAYERS + 2
    model = loud_transformer(VOCAB, n_layer=layers)
    with torch.no_grad():
        model.blocks[-1].feed_forward.up.weight[5] = 0
    drawn = activations.draw(Subject("x", "transformer", model, TOKENIZER, torch.zeros(3), [], batch=batch()))
    assert drawn is not None
    assert len(drawn.figure.axes) == 2 * activations.MAX_LAYERS
    assert any(verdict.text.startswith(f"blocks.{layers - 1}.") for verdict in drawn.verdicts)


@pytest.mark.parametrize(
    "name", ["mlp", "batchnorm-mlp", "bow", "wavenet", "rnn", "gru", "lstm", "transformer"]
)
def test_every_rung_with_nonlinearities_has_activations(name: str) -> None:
    model, some = nonzero_model(name), batch()
    inputs, targets = some.inputs_BT, some.targets_BT.clone()
    targets[0, 3:] = IGNORE_INDEX
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    found = activations.stages(model, Batch(inputs, targets))
    assert found
    for stage in found:
        assert len(stage.values_NH) == int((targets != IGNORE_INDEX).sum())
    assert len({stage.name for stage in found}) == len(found)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_a_saturated_layer_is_told() -> None:
    wide = activations.LayerActivations(
        "tanh 1", "tanh", torch.randn(200, 30, generator=torch.Generator().manual_seed(0)).mul(4).tanh()
    )
    said = [v.text for v in activations.judge([], [wide])]
    assert "before training tanh 1 is saturated at" in said[0]
    assert "lower the initial scale" in said[0]


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_recurrent_layers_unrolled_are_pytorchs(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    layers = kind(5, 7, num_layers=2, batch_first=True)
    x = torch.randn(3, 9, 5)
    unrolled = gates.unroll(layers, x)
    torch.testing.assert_close(unrolled[-1]["hidden"], layers(x)[0], atol=1e-6, rtol=1e-5)
    assert len(unrolled) == 2


def test_attention_computed_anew_is_the_models() -> None:
    for style in ("modern", "gpt2"):
        model = loud_transformer(VOCAB, style=style)
        tokens = documents(2, 20)
        tokens[1, 7] = 0  # another document begins
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
            qkv, mixed = calls[2 * layer], calls[2 * layer + 1]
            v = qkv.chunk(3, dim=-1)[2].view(2, 21, 2, -1).transpose(1, 2)
            expected = (weights[layer] @ v).transpose(1, 2).reshape(2, 21, -1)
            torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=1e-5)


def test_heads_are_named_by_their_habit() -> None:
    before = np.eye(9, k=-1)
    before[0, 0] = 1
    first = np.zeros((9, 9))
    first[:, 0] = 1
    even = np.tril(np.ones((9, 9)))
    even /= even.sum(1, keepdims=True)
    said = [v.text for v in attention.judge(np.stack([before, first, even])[None])]
    assert said == [
        "layer 0, head 0 attends to the previous token (100%)",
        "layer 0, head 1 attends to the boundary (100%)",
        "layer 0, head 2 spreads its attention evenly",
    ]


# --- reach ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "limit"), [("mlp", 8), ("batchnorm-mlp", 3), ("wavenet", 8), ("bow", 8)])
def test_nothing_beyond_the_context_has_influence(name: str, limit: int) -> None:
    shares = reach.influence(nonzero_model(name), batch(length=20))
    assert shares.sum() == pytest.approx(1)
    assert (shares[:limit] > 0).all()
    assert shares[limit:].sum() == 0


def test_influence_is_that_of_each_gradient() -> None:
    model, some = nonzero_model("lstm"), batch(5, 6)
    shares = reach.influence(model, some)
    total = np.zeros(6)
    for row in range(5):
        for t in range(6):
            embedded = model.embedding(some.inputs_BT[row : row + 1]).detach().requires_grad_()
            logits = model.head(model.layers(embedded)[0])
            F.cross_entropy(logits[0, t], some.targets_BT[row, t]).backward()
            for back in range(t + 1):
                total[back] += float(embedded.grad[0, t - back].norm()) / (5 * (6 - back))
    np.testing.assert_allclose(shares, total / total.sum(), rtol=1e-4)


# --- embeddings, pairs, orders, sizes ---------------------------------------------------------------


def test_components_are_the_covariances_eigenvectors() -> None:
    rows = np.random.default_rng(0).normal(size=(20, 5)) @ np.diag([5, 3, 1, 0.5, 0.1])
    points, shares = embeddings.project(rows)
    values, vectors = np.linalg.eigh(np.cov(rows.T, bias=True))
    np.testing.assert_allclose(shares, values[::-1][:2] / values.sum())
    expected = (rows - rows.mean(0)) @ vectors[:, ::-1][:, :2]
    np.testing.assert_allclose(np.abs(points), np.abs(expected), atol=1e-9)


@pytest.mark.parametrize("width", [1, 2])
def test_narrow_embeddings_have_two_components_too(width: int) -> None:
    points, shares = embeddings.project(np.random.default_rng(0).normal(size=(6, width)))
    assert points.shape == (6, 2)
    assert shares.sum() == pytest.approx(1)


def test_labels_are_pushed_apart() -> None:
    points = np.random.default_rng(0).normal(size=(40, 2)) * 0.2
    room = np.array([0.1, 0.08])
    places = embeddings.place_labels(points, room)
    gaps = (np.abs(places[:, None] - places[None]) / room).max(-1) + 2 * np.eye(40)
    assert gaps.min() > 0.8
    assert np.abs(places - points).max() < 1


def test_pairs_are_counted_within_documents() -> None:
    rows = torch.tensor([[1, 2, 0], [2, 2, 0]])
    pairs = bigrams.pairs_of(split_of(rows), 0)
    counts = bigrams.pair_counts(pairs, EVERY, VOCAB)
    expected = {(0, 1): 1, (1, 2): 1, (2, 0): 2, (0, 2): 1, (2, 2): 1}
    assert {pair: int(n) for pair, n in np.ndenumerate(counts) if n} == expected


def test_mean_predictions_are_the_bigrams_own_rows() -> None:
    model = nonzero_model("bigram")
    means = bigrams.mean_predictions(model, batch(32), EVERY)
    np.testing.assert_allclose(means, model.W.detach().double().softmax(-1).numpy(), rtol=1e-5)
    assert np.isnan(bigrams.mean_predictions(model, batch(1, 3), EVERY)).any()
    some = np.array([7, 3])
    np.testing.assert_array_equal(bigrams.mean_predictions(model, batch(32), some), means[some])


def test_pairs_of_a_large_vocabulary_take_little_memory() -> None:
    size = 4000
    kind = MODELS.get("mlp")
    model = kind(kind.Config(), size, 0)
    rows = documents(60, 12)[:, 1:]
    subject = Subject("x", "mlp", model, TOKENIZER, torch.zeros(3), [], train=split_of(rows), batch=batch())
    tracemalloc.start()
    drawn = bigrams.draw(subject)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert drawn is not None
    assert drawn.verdicts
    assert most < size**2 * 8 / 2


def test_orders_add_up_to_the_models_probability() -> None:
    torch.manual_seed(0)
    rows = torch.cat([torch.randint(1, 5, (60, 9)), torch.zeros(60, 1, dtype=torch.long)], dim=1)
    for smoothing in ("kneser-ney", "additive"):
        model = Count(CountConfig(order=4, smoothing=smoothing), VOCAB, 0)  # type: ignore[arg-type]
        inputs = torch.cat([torch.zeros(60, 1, dtype=torch.long), rows[:, :-1]], dim=1)
        model.count_batch(Batch(inputs, rows))
        model.finish()
        contexts, targets = orders.positions(model, split_of(rows[:10].flip(1).roll(-1, 1)))
        shares, often = orders.contributions(model.smoothed, contexts, targets)
        assert shares.sum() == pytest.approx(1)
        assert often.sum() == pytest.approx(1)
        found = orders.order_losses(model, contexts, targets)
        assert found[-1] == pytest.approx(-np.log(model.smoothed.target_probs(contexts, targets)).mean())
        assert found[0] == pytest.approx(
            -np.log(model.with_order(1).smoothed.target_probs(contexts[:1], targets)).mean()
        )


def test_gradients_and_idle_parameters() -> None:
    model, some = nonzero_model("mlp"), batch()
    grads = parameters.gradients(model, some)
    assert all(p.grad is None for p in model.parameters())
    model.zero_grad()
    logits = model(some.inputs_BT)[0]
    F.cross_entropy(logits.flatten(0, 1), some.targets_BT.flatten()).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(grads[name], p.grad)
    grads["head.bias"] = torch.zeros(VOCAB)
    said = [v.text for v in parameters.judge(grads, dict(model.named_parameters()))]
    assert "no gradient reaches head.bias" in said


def test_quantiles_are_of_sizes() -> None:
    box = parameters.quantiles(torch.tensor([0.0, 0.1, -0.1, 0.1]))
    assert box["med"] == pytest.approx(-1)
    assert math.isnan(parameters.quantiles(torch.zeros(3))["med"])


@pytest.mark.parametrize(
    ("ratio", "said"),
    [(1e-3, "about 10^-3.0"), (1e-6, "learning rate too small"), (0.5, "w changes by 10^-0.3")],
)
def test_the_pace_is_judged(ratio: float, said: str) -> None:
    (verdict,) = updates.judge([Update("w", np.array([np.nan] + 50 * [ratio]))])
    assert said in verdict.text


def test_fast_matrices_are_told_in_one_sentence() -> None:
    (verdict,) = updates.judge([Update(f"w{n}", np.full(50, n / 4)) for n in (1, 2, 3)])
    assert verdict.text == "w3 and 2 more matrices change by up to 10^-0.1 per step: learning rate too large"


def test_a_matrix_that_began_at_zero_is_not_too_fast() -> None:
    growing = Update("w", np.array([np.nan, *1 / np.arange(1, 100)]))
    assert updates.judge([growing])[0].kind == "good"
    few = Update("w", growing.ratio_S[:20])
    assert "too few" in updates.judge([few])[0].text


@pytest.mark.parametrize(
    ("token", "expected"), [(0, BOUNDARY), (1, "⏎"), (2, "␣"), (3, r"\$"), (4, "a"), (5, "é"), (6, "65E5")]
)
def test_labels_can_be_read(token: int, expected: str) -> None:
    assert label(fit_tokenizer("char", ["a $é日\n"]), token) == expected
