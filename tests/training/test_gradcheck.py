"""The gradient checker accepts correct gradients and reports wrong ones."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from makemore.inspection.gradcheck import HasIntermediateGrads, gradcheck
from makemore.models.base import ManualModel
from makemore.models.batchnorm_mlp import BatchNormMLP, BatchNormMLPConfig
from makemore.types import IGNORE_INDEX, State

V = 9
INTERMEDIATES = {
    "emb",
    "embcat",
    "hprebn.0",
    "bnmeani.0",
    "bndiff.0",
    "bndiff2.0",
    "bnvar.0",
    "bnvar_inv.0",
    "bnraw.0",
    "hpreact.0",
    "h.0",
    "logits",
    "logit_maxes",
    "norm_logits",
    "counts",
    "counts_sum",
    "counts_sum_inv",
    "probs",
    "logprobs",
    "loss",
}


class BigramTable(ManualModel):
    """A bigram table whose hand-written gradient is multiplied by ``error``."""

    max_len = 1
    summary = "bigram table"

    def __init__(self, error: float = 1.0) -> None:
        super().__init__(None, V, 0)
        self.table = nn.Parameter(torch.zeros(V, V))
        self.error = error

    def init_state(self, batch_size: int, capacity: int) -> State:
        return ()

    def forward(
        self, tokens_BT: Tensor, state: State | None = None, valid_BT: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        return self.table[tokens_BT], state

    @torch.no_grad()
    def loss_and_grads(self, inputs_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        valid = targets_BT != IGNORE_INDEX
        inputs, targets = inputs_BT[valid], targets_BT[valid]
        logprobs = self.table[inputs].log_softmax(1)
        dlogits = (logprobs.exp() - nn.functional.one_hot(targets, V)) / len(targets)
        grad = torch.zeros_like(self.table).index_add_(0, inputs, dlogits)
        loss = -logprobs.gather(1, targets[:, None]).mean()
        return loss, {"table": grad * self.error}


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    inputs, targets = torch.randint(0, V, (2, 5, 7), generator=generator)
    targets[0, 3:] = IGNORE_INDEX
    return inputs, targets


@pytest.mark.parametrize("backprop", ["fused", "steps"])
@pytest.mark.parametrize("n_layer", [1, 3])
def test_every_parameter_and_intermediate_gradient_matches_autograd(
    backprop: str, n_layer: int, batch: tuple[Tensor, Tensor]
) -> None:
    torch.manual_seed(0)
    config = BatchNormMLPConfig(n_embd=4, n_hidden=8, n_layer=n_layer, backprop=backprop)
    model = BatchNormMLP(config, V, 0)
    rows = gradcheck(model, *batch, samples=5)
    assert [r for r in rows if not r.approximate] == []
    by_autograd = {r.name: r for r in rows if r.reference == "autograd"}
    parameters = {name for name, _ in model.named_parameters()}
    assert parameters | INTERMEDIATES <= set(by_autograd)
    assert all(r.max_difference <= 1e-9 for r in by_autograd.values())
    assert by_autograd["logprobs"].exact
    assert {r.name for r in rows if r.reference == "differences"} == parameters


def test_gradcheck_does_not_change_the_model(batch: tuple[Tensor, Tensor]) -> None:
    model = BatchNormMLP(BatchNormMLPConfig(n_embd=4, n_hidden=8), V, 0).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradcheck(model, *batch, samples=1)
    assert not model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_loss_intermediate_matches_the_forward_loss(batch: tuple[Tensor, Tensor]) -> None:
    model = BatchNormMLP(BatchNormMLPConfig(n_embd=4, n_hidden=8), V, 0)
    assert isinstance(model, HasIntermediateGrads)
    assert model.intermediates(*batch)["loss"].item() == pytest.approx(math.log(V), abs=1e-5)


def test_a_model_without_intermediates_can_be_checked(batch: tuple[Tensor, Tensor]) -> None:
    rows = gradcheck(BigramTable(), *batch)
    assert [(r.name, r.reference) for r in rows] == [
        ("table", "autograd"),
        ("table", "differences"),
    ]
    assert all(r.approximate for r in rows)


@pytest.mark.parametrize("error", [1 + 1e-4, -1.0, math.nan])
def test_a_wrong_gradient_is_detected(error: float, batch: tuple[Tensor, Tensor]) -> None:
    rows = gradcheck(BigramTable(error), *batch, samples=V * V)
    assert not any(r.approximate or r.exact for r in rows)
