"""Dropout: the fraction dropped, the scaling, independence, gradients and seeding."""

from __future__ import annotations

import pytest
import torch

from makemore.models.layers.dropout import Dropout, dropout


@pytest.mark.parametrize("p", [1e-9, 0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fraction_dropped_and_scale(p, dtype):
    torch.manual_seed(0)
    x = torch.ones(1001, 999, dtype=dtype)
    y = dropout(x, p)
    assert y.dtype == dtype
    fraction = float((y == 0).double().mean())
    assert fraction == pytest.approx(p, abs=4 * (p * (1 - p) / x.numel()) ** 0.5 + 2**-15)
    nonzero = y[y != 0]
    assert (nonzero == nonzero[0]).all()
    assert float(nonzero[0]) == pytest.approx(1 / (1 - p), rel=0.01 if dtype == torch.bfloat16 else 1e-4)


def test_neighbours_are_dropped_independently():
    torch.manual_seed(1)
    dropped = (dropout(torch.ones(1 << 20), 0.3) == 0).double()
    for shift in (1, 2, 3, 4, 5):
        both = float((dropped[:-shift] * dropped[shift:]).mean())
        assert both == pytest.approx(0.09, abs=0.002)


def test_gradients_flow_only_through_elements_not_dropped():
    torch.manual_seed(2)
    x = torch.randn(5, 7, requires_grad=True)
    y = dropout(x, 0.5)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(y == 0, 0.0, 2.0))


def test_dropout_applies_only_in_training():
    layer, x = Dropout(0.5), torch.randn(4, 4)
    assert layer.eval()(x) is x
    assert Dropout(0.0).train()(x) is x
    assert not torch.equal(layer.train()(x), x)


def test_the_same_seed_drops_the_same_elements():
    outputs = []
    for _ in range(2):
        torch.manual_seed(3)
        outputs.append(dropout(torch.ones(33), 0.5))
    assert torch.equal(*outputs)
