"""A function of tensors as a list of operations that ``operations.js`` can run."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._decomp import core_aten_decompositions
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from makemore.errors import UserError

OPERATIONS = frozenset(
    """
_log_softmax _softmax _to_copy abs add addmm amax avg_pool2d bitwise_and bitwise_or bmm bmm_transposed
cat clamp clone copy cummax cumsum div embedding eq exp expand flip full_like ge gelu gt index index_put
index_put_in_place le log log1p lt maximum mean mm mul native_layer_norm ne neg permute pow relu rsqrt
select sigmoid slice slice_scatter split_with_sizes squeeze sub sum tanh transpose unfold unsqueeze view
where getitem
    """.split()  # noqa: SIM905 - a list would take half a page
)
"""Operations that ``operations.js`` knows, by their names in torch's core set without variants."""
MAX_ARGUMENTS = {
    "_to_copy": 1,
    "add": 2,
    "addmm": 3,
    "avg_pool2d": 3,
    "div": 2,
    "gelu": 1,
    "index_put": 3,
    "sub": 2,
}
"""The most positional arguments that ``operations.js`` handles, of operations that can have more."""
IRRELEVANT = {"device", "layout", "memory_format", "non_blocking", "pin_memory"}
"""Keyword arguments that don't change a result."""
KEYWORDS = {"_to_copy": {"dtype"}, "full_like": {"dtype"}, "gelu": {"approximate"}}
"""Other keyword arguments that are known."""


VIEWS = frozenset({"_to_copy", "clone", "expand", "permute", "squeeze", "transpose", "unsqueeze", "view"})
"""Operations whose result may share its numbers with their first argument in JavaScript."""


class Program(NamedTuple):
    """Operations on numbered values: first the constants, then the inputs, then each operation's result."""

    constants: list[Tensor]
    n_inputs: int
    operations: list[list[Any]]
    """Name, arguments and keyword arguments; a value is ``{"v": number}``."""
    outputs: list[Any]


@torch.no_grad()
def trace(function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> Program:
    """Record a function as a program; results that depend on no input become constants.

    Args:
        function: Takes and returns tensors.
        inputs: Example inputs.

    Raises:
        UserError: The function uses operations or arguments that ``operations.js`` doesn't support.
    """
    functional = torch.func.functionalize(function, remove="mutations")
    table: Any = core_aten_decompositions()
    # oneDNN has its own recurrent layers; switching it off warns about Intel's GPUs.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.backends.mkldnn.flags(enabled=False):
            try:
                recorded = make_fx(functional, decomposition_table=table)(*inputs)
            except RuntimeError as error:
                if "tracing tensor" not in str(error):
                    raise
                raise UserError(
                    "--format html can't export code that turns tensors into numbers, as .item() does"
                ) from None
    return _fold_constants(recorded)


def _fold_constants(recorded: fx.GraphModule) -> Program:
    """The program of a graph whose nodes that depend on no input are computed."""
    constants: dict[fx.Node, Any] = {}
    inputs, operations = list[fx.Node](), list[fx.Node]()
    *nodes, output = recorded.graph.nodes
    for node in nodes:
        if node.op == "placeholder":
            inputs.append(node)
        elif node.op == "get_attr":
            constants[node] = functools.reduce(getattr, str(node.target).split("."), recorded)
        elif all(argument in constants for argument in node.all_input_nodes):
            args, kwargs = fx.map_arg((node.args, node.kwargs), constants.__getitem__)
            constants[node] = node.target(*args, **kwargs)
        else:
            operations.append(node)
    _transpose_in_products(recorded.graph)
    operations = _needed(operations, output)
    in_place = {node for node in operations if _may_write_in_place(node, operations, output)}
    arguments = dict.fromkeys(n for node in [*operations, output] for n in node.all_input_nodes)
    stored = [node for node in arguments if node in constants]
    numbers = {node: i for i, node in enumerate([*stored, *inputs, *operations])}
    return Program(
        constants=[constants[node] for node in stored],
        n_inputs=len(inputs),
        operations=[_encode_operation(node, numbers, node in in_place) for node in operations],
        outputs=[_encode(value, numbers) for value in output.args[0]],
    )


def bmm_transposed(a: Tensor, b: Tensor) -> Tensor:
    """Products of the matrices (N, R, D) of a with the transposed matrices (N, C, D) of b, of any shape."""
    return torch.bmm(a, b.reshape(len(a), -1, a.shape[-1]).transpose(1, 2))


def _transpose_in_products(graph: fx.Graph) -> None:
    """Replace products with a transposed matrix, because transposing takes longer than the product."""
    for node in graph.nodes:
        if node.op == "call_function" and _name(node) == "bmm":
            source = _untransposed(node.args[1])
            if source is not None:
                node.target, node.args = bmm_transposed, (node.args[0], source)


def _untransposed(node: Any) -> Any:
    """The node whose matrices this node has transposed; None if there is none."""
    if node.op != "call_function":
        return None
    shape = node.meta["tensor_meta"].shape
    while node.op == "call_function" and _name(node) in {"clone", "expand", "view"}:
        node = node.args[0]
        if "tensor_meta" not in node.meta:
            return None
        moved = node.meta["tensor_meta"].shape
        if moved[-2:] != shape[-2:] or moved.numel() != shape.numel():
            return None
    if node.op != "call_function" or _name(node) != "permute":
        return None
    *batch, row, column = node.args[1]
    swapped = [*range(len(batch)), len(batch) + 1, len(batch)]
    return node.args[0] if [*batch, row, column] == swapped else None


def _may_write_in_place(node: Any, operations: Sequence[fx.Node], output: fx.Node) -> bool:
    """Whether an operation changes a copy of an input that neither it nor a later operation reads."""
    if _name(node) != "index_put":
        return False
    source = node.args[0]
    while source.op == "call_function" and _name(source) == "clone":
        source = source.args[0]
    if source.op != "placeholder":
        return False
    sharing = {source}
    for other in operations:
        if _name(other) in VIEWS and other.args[0] in sharing:
            sharing.add(other)
    others = {argument for argument in tree_leaves(node.args[1:]) if isinstance(argument, fx.Node)}
    later = [*operations[operations.index(node) + 1 :], output]
    return not sharing & others and not any(sharing.intersection(other.all_input_nodes) for other in later)


def _needed(operations: Sequence[fx.Node], output: fx.Node) -> list[fx.Node]:
    """The operations whose results are used."""
    needed = set(output.all_input_nodes)
    for node in reversed(operations):
        if node in needed:
            needed.update(node.all_input_nodes)
    return [node for node in operations if node in needed]


def _name(node: Any) -> str:
    target = node.target
    name = str(target).split(".")[1] if isinstance(target, torch._ops.OpOverload) else target.__name__
    return name if name in OPERATIONS else name.removesuffix("_")  # in place, on a value used nowhere else


def _encode_operation(node: fx.Node, numbers: dict[fx.Node, int], in_place: bool) -> list[Any]:
    name = _name(node)
    if name not in OPERATIONS:
        raise UserError(f"--format html can't represent the operation {name}; use another format")
    kwargs = {k: v for k, v in node.kwargs.items() if v is not None and k not in IRRELEVANT}
    if not _is_supported(name, node.args, kwargs):
        raise UserError(f"--format html can't represent these arguments of {name}; use another format")
    encoded = {key: _encode(value, numbers) for key, value in kwargs.items()}
    arguments = [_encode(argument, numbers) for argument in node.args]
    return [f"{name}_in_place" if in_place else name, arguments, encoded]


def _is_supported(name: str, arguments: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether JavaScript gives the same result for such arguments."""
    if kwargs.keys() - KEYWORDS.get(name, set()):
        return False
    if name == "gelu" and kwargs.get("approximate") != "tanh":
        return False
    if name in {"index", "index_put"} and any(map(_is_unsupported_index, arguments[1])):
        return False
    if name == "avg_pool2d" and set(arguments[2] if len(arguments) > 2 else ()) != {1}:
        return False
    if name == "slice_scatter" and arguments[5:] not in {(), (1,)}:
        return False
    if name == "clamp" and any(isinstance(limit, fx.Node) for limit in arguments[1:]):
        return False
    first = arguments[0]
    return isinstance(first, fx.Node | list | tuple) and len(arguments) <= MAX_ARGUMENTS.get(
        name, len(arguments)
    )


def _is_unsupported_index(index: Any) -> bool:
    """Whether an index is missing, or a mask of elements."""
    return index is None or ("tensor_meta" in index.meta and index.meta["tensor_meta"].dtype == torch.bool)


def _encode(value: Any, numbers: dict[fx.Node, int]) -> Any:
    if isinstance(value, fx.Node):
        return {"v": numbers[value]}
    if isinstance(value, list | tuple):
        return [_encode(item, numbers) for item in value]
    if isinstance(value, float):
        return encode_number(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value).removeprefix("torch.")  # a dtype, device or layout


def encode_number(value: float) -> Any:
    """The number, or ``{"float": "inf"}`` and the like, which JSON has no numbers for."""
    return value if math.isfinite(value) else {"float": str(value)}
