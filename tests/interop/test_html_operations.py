"""The operations of exported web pages: in the browser, they compute what torch computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from makemore.errors import UserError
from makemore.interop import html
from makemore.interop.html.page import SCRIPTS
from makemore.interop.html.program import Program, trace

FOLDER = Path(html.__file__).parent
RUN = """async ({ program, constants, inputs }) => {
  const read = ({ s, d, real }) => tensor(s, real ? Float32Array.from(d) : Int32Array.from(d));
  const outputs = compile({ ...program, constants: constants.map(read) })(...inputs.map(read));
  return outputs.map(({ s, d }) => ({ s, d: Array.from(d) }));
}"""
torch.manual_seed(0)
X, INDEX, ROW = torch.randn(2, 3), torch.tensor([1, 0]), torch.randn(3)
WEIGHT = torch.randn(2, 3, 4)


def replaced(x: Tensor, index: Any, values: Any) -> Tensor:
    y = x.clone()
    y[index] = values
    return y


def replaced_and_copied(x: Tensor) -> tuple[Tensor, ...]:
    z = torch.zeros_like(x)
    z.copy_(x)
    return replaced(x, torch.tensor([1]), 7.0), z


CASES: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "in place, after a copy": (replaced_and_copied, (X,)),
    "in place, from itself": (lambda x, i: replaced(x, i, x.expand(2, 3)), (X, INDEX)),
    "in place, read later": (lambda x, i: (replaced(x, i, 0.0), x.view(3, 2)), (X, INDEX)),
    "sum of all": (lambda x: x.sum(), (X,)),
    "mean of all": (lambda x: x.mean(), (X,)),
    "largest of all": (lambda x: x.amax(), (X,)),
    "sum of two dimensions": (lambda x: x.sum((0, 1), keepdim=True), (X,)),
    "cumulative": (lambda x: (x.cummax(1).values, x.cumsum(0)), (X,)),
    "softmax": (lambda x: (x.softmax(0), x.log_softmax(1)), (X,)),
    "normalised": (lambda x: F.layer_norm(x, (3,)), (X,)),
    "to bool": (lambda x: (x * 0.5).bool().long(), (X,)),
    "filled": (lambda x: torch.full_like(x, 0.5, dtype=torch.bfloat16).float() + x, (X,)),
    "end replaced": (lambda x: torch.zeros_like(x).slice_scatter(x[:, :2], 1, -2) + x, (X,)),
    "matrix with a matrix added": (lambda x, b: torch.addmm(b, x, torch.ones(3, 2)), (X, torch.randn(2, 2))),
    "matrix with a column added": (lambda x, b: torch.addmm(b, x, torch.ones(3, 2)), (X, torch.randn(2, 1))),
    "row broadcast": (lambda x, row: (x * row, row - x, x.maximum(row)), (X, ROW)),
    "column broadcast": (lambda x, c: (x * c, c / x), (X, torch.randn(2, 1))),
    "rows of rows": (lambda a, row: (a * row, row * a), (torch.randn(4, 2, 3), torch.randn(1, 1, 3))),
    "transposed": (lambda a, b: a @ b.transpose(-1, -2), (torch.randn(2, 4, 5, 3), torch.randn(2, 4, 6, 3))),
    "transposed, expanded": (
        lambda a, b: a @ b.transpose(-1, -2),
        (torch.randn(2, 4, 5, 3), torch.randn(1, 4, 6, 3)),
    ),
    "constant matrices": (lambda x: torch.bmm(x, WEIGHT), (torch.randn(2, 5, 3),)),
    "constant matrices, transposed": (lambda x: torch.bmm(x, WEIGHT.mT), (torch.randn(2, 5, 4),)),
    "moved": (lambda a: (a.permute(2, 0, 1) + 1, a.transpose(0, 2) * 2), (torch.randn(2, 1, 3),)),
    "powers": (lambda x: (x.abs() ** 1.5, x**2, x**3), (X,)),
    "functions": (lambda x: (x.sigmoid(), x.relu(), x.abs().log1p(), F.gelu(x, approximate="tanh")), (X,)),
    "comparisons": (lambda x: (torch.where(x > 0, x, 0.0), (x <= 0).float()), (X,)),
    "selected": (lambda x, i: (x[i], x[:, 1], x[:, -1]), (X, INDEX)),
    "division of whole numbers": (lambda i: i / 2, (INDEX,)),
}


def outputs_of(function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    outputs = function(*(x.clone() for x in inputs))
    return outputs if isinstance(outputs, tuple) else (outputs,)


def encoded(x: Tensor) -> dict[str, Any]:
    return {"s": list(x.shape), "d": x.double().flatten().tolist(), "real": x.is_floating_point()}


@pytest.mark.slow
def test_operations_are_torchs(browser: Any) -> None:
    page = browser.new_page()
    for name in SCRIPTS[:2]:
        page.add_script_tag(content=(FOLDER / name).read_text(encoding="utf-8"))
    for name, (function, inputs) in CASES.items():
        program: Program = trace(lambda *x, f=function: outputs_of(f, x), *inputs)
        described = {"operations": program.operations, "outputs": program.outputs, "inputs": program.n_inputs}
        given = [encoded(x) for x in inputs]
        constants = [encoded(constant) for constant in program.constants]
        found = page.evaluate(RUN, {"program": described, "constants": constants, "inputs": given})
        for output, expected in zip(found, outputs_of(function, inputs), strict=True):
            assert output["s"] == list(expected.shape), name
            assert output["d"] == pytest.approx(expected.double().flatten().tolist(), rel=1e-5, abs=1e-6), (
                name
            )
    page.close()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.slice_scatter(x, x[:, :2], 1, 0, 3, 2),
        lambda x: x.clamp(min=x * 2),
        lambda x: replaced(x, x > 0, 0.0),
        lambda x: replaced(x, (slice(None), torch.tensor([1])), 0.0),
        lambda x: F.avg_pool2d(x[None], 2),
    ],
)
def test_arguments_that_would_give_other_results_are_refused(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(UserError, match="can't represent"):
        trace(lambda x: (function(x),), torch.randn(4, 4))
