"""micrograd: gradients against torch, small networks, graph drawings."""

from __future__ import annotations

import math
import random
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import pytest
import torch

from makemore.micrograd import (
    MLP,
    Bigram,
    Value,
    cross_entropy,
    gradient_descent,
    main,
    to_dot,
    to_svg,
    to_text,
    topological_order,
)

NAMES = ["emma", "olivia", "ava", "isabella", "sophia"]
EXPRESSIONS: dict[str, Callable] = {
    "sum": lambda a, b: a + b + 2,
    "product": lambda a, b: 3 * a * b * a,
    "difference": lambda a, b: 1 - a - b,
    "quotient": lambda a, b: a / b + 2 / a,
    "power": lambda a, b: a**3 + b**-0.5,
    "exp": lambda a, b: (a * b).exp(),
    "log": lambda a, b: (a + b).log() * a,
    "tanh": lambda a, b: (a * b - 1).tanh(),
    "relu": lambda a, b: (a - b).relu() + (b - a).relu() * 5,
    "reused": lambda a, b: (a * a + a) * (a * a + a) - b * a,
    "negated": lambda a, b: -a * -b,
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_values_and_gradients_match_torch(name: str) -> None:
    rng = random.Random(0)
    for _ in range(20):
        a, b = rng.uniform(0.1, 3), rng.uniform(0.1, 3)
        ours = [Value(a), Value(b)]
        theirs = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (a, b)]
        out, expected = EXPRESSIONS[name](*ours), EXPRESSIONS[name](*theirs)
        out.backward()
        expected.backward()
        assert out.data == pytest.approx(expected.item(), rel=1e-12)
        for mine, tensor in zip(ours, theirs, strict=True):
            assert mine.grad == pytest.approx(tensor.grad.item(), rel=1e-10, abs=1e-12)


def test_gradients_add_up_until_they_are_set_to_zero() -> None:
    """As in PyTorch; forgetting to set them to zero is a lesson of the lecture."""
    x, theirs = Value(3.0), torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    y, expected = x * x * x, theirs * theirs * theirs
    for _ in range(2):
        y.backward()
        expected.backward(retain_graph=True)
        assert x.grad == theirs.grad.item()
    assert x.grad == 54.0
    x.grad = 0.0
    y.backward()
    assert (x.grad, y.grad) == (27.0, 1.0)


def test_backward_through_a_long_chain_does_not_recurse() -> None:
    x = Value(1.0)
    total = sum((x for _ in range(20_000)), Value(0.0))
    total.backward()
    assert x.grad == 20_000


def test_cross_entropy_matches_torch_without_overflow() -> None:
    logits = [Value(x) for x in (1000.0, 1002.0, -3.0)]
    cross_entropy(logits, 0).backward()
    theirs = torch.tensor([1000.0, 1002.0, -3.0], dtype=torch.float64, requires_grad=True)
    torch.nn.functional.cross_entropy(theirs[None], torch.tensor([0])).backward()
    assert [logit.grad for logit in logits] == pytest.approx(theirs.grad.tolist())


def test_mlp_matches_torch_and_fits_four_examples() -> None:
    points = torch.tensor([[2, 3, -1], [3, -1, 0.5], [0.5, 1, 1], [1, 1, -1]], dtype=torch.float64)
    targets = torch.tensor([1, -1, -1, 1], dtype=torch.float64)
    net = MLP([3, 4, 4, 1], seed=1)
    layers = []
    for layer in net.layers:
        rows = torch.tensor([[w.data for w in neuron] for neuron in layer], dtype=torch.float64)
        layers.append(rows.requires_grad_())
    x = points
    for rows in layers:
        x = torch.tanh(x @ rows[:, :-1].T + rows[:, -1])
    expected = (x[:, 0] - targets).square().sum()
    expected.backward()

    def loss() -> Value:
        outputs = [net(point)[0] for point in points.tolist()]
        return sum(((o - t) ** 2 for o, t in zip(outputs, targets.tolist(), strict=True)), Value(0.0))

    total = loss()
    total.backward()
    assert total.data == pytest.approx(expected.item())
    grads = [grad for rows in layers for grad in rows.grad.flatten().tolist()]
    assert [p.grad for p in net.parameters()] == pytest.approx(grads)
    losses = gradient_descent(net.parameters(), loss, 150, 0.1)
    assert losses[-1] < 0.01 < losses[0]


def test_bigram_converges_to_the_count_model() -> None:
    bigram = Bigram(NAMES)
    losses = gradient_descent(bigram.parameters(), lambda: bigram.loss(NAMES), 400, 20.0)
    assert losses[0] == pytest.approx(math.log(len(bigram.letters)))
    pairs = [f".{name}."[i : i + 2] for name in NAMES for i in range(len(name) + 1)]
    contexts = [pair[0] for pair in pairs]
    best = -sum(math.log(pairs.count(pair) / contexts.count(pair[0])) for pair in pairs) / len(pairs)
    assert best < losses[-1] < best + 0.02


def neuron() -> Value:
    x, w = Value(2.0, label="x"), Value(-0.5, label="w")
    out = (x * w + x).tanh()
    out.label = 'a < "b"'
    out.backward()
    return out


def test_topological_order_puts_inputs_first() -> None:
    values = topological_order(neuron())
    assert [v.op or v.label for v in values] == ["x", "w", "×", "+", "tanh"]


def test_to_text() -> None:
    lines = to_text(neuron()).splitlines()
    assert lines[0].startswith('a < "b" = tanh   data 0.7616   grad 1.0000')
    assert lines[-1] == "   └─ x (above)"
    assert len(lines) == 6


def test_to_dot() -> None:
    dot = to_dot(neuron())
    assert dot.count("->") == 5
    assert dot.count("[label=") == 5
    assert r"a < \"b\"" in dot


def test_to_svg() -> None:
    root = ElementTree.fromstring(to_svg(neuron()))
    tags = [element.tag.partition("}")[2] for element in root]
    assert (tags.count("rect"), tags.count("path")) == (5, 5)
    boxes = [(float(e.get("x")), float(e.get("y"))) for e in root if e.tag.endswith("rect")]
    for i, (x, y) in enumerate(boxes):
        assert all(abs(x - u) >= 104 or abs(y - v) >= 48 for u, v in boxes[:i])
        assert x + 104 <= float(root.get("width"))
        assert y + 48 <= float(root.get("height"))


def test_demo(capsys: pytest.CaptureFixture[str]) -> None:
    main()
    assert "bigram of 5 names: 2.4849 (ln 12)" in capsys.readouterr().out
