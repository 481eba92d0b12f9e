"""Export a model as an ONNX graph for onnxruntime and others.

In: tokens (B, T) and the model's state; out: logits (B, T, V) and the next state. Documents begin with the
boundary token and the initial state, which is part of the metadata.
"""

from __future__ import annotations

import base64
import copy
import importlib
import json
import logging
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from makemore.errors import UserError, require_packages
from makemore.interop.base import ExportFormat
from makemore.models.base import CountModel, LanguageModel, MixtureModel
from makemore.tokenizers import Tokenizer
from makemore.types import State

OPSET = 20


def onnx_bytes(model: LanguageModel, tokenizer: Tokenizer) -> bytes:
    """The serialised graph, with tokenizer and boundary as metadata.

    Raises UserError if the model counts or the optional packages are missing.
    """
    members = model.members if isinstance(model, MixtureModel) else [model]
    if any(isinstance(member, CountModel) for member in members):
        raise UserError("ONNX can't represent models that count; --format arpa takes count")
    require_packages("--format onnx", ("onnx", "onnxscript"), extra="onnx")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    graph = Stateful(copy.deepcopy(model).cpu().eval())
    length = 8 if model.supports_streaming or model.max_len is None else min(8, model.max_len)
    state = graph.initial_state(rows=2)
    names = [f"state_{i}" for i in range(len(state))]
    dynamic = torch.export.Dim.DYNAMIC
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # from the exporter itself
        program: Any = torch.onnx.export(
            graph,
            (torch.full((2, length), model.boundary_id), *state),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=(
                {0: dynamic, 1: dynamic if length > 1 else None},
                *([tuple({0: dynamic} for _ in state)] if state else []),
            ),
            input_names=["tokens", *names],
            output_names=["logits", *(f"next_{name}" for name in names)],
            custom_translation_table={torch.ops.aten.cummax.default: _cummax_translation()},
            verbose=False,
        )
    program.model.metadata_props.update(
        {
            "makemore.tokenizer": json.dumps(tokenizer.to_dict(), ensure_ascii=False),
            "makemore.boundary_id": str(model.boundary_id),
            "makemore.initial_state": json.dumps(
                [_described(name, part) for name, part in zip(names, graph.initial_state(1), strict=True)]
            ),
            "makemore.max_len": json.dumps(None if model.supports_streaming else model.max_len),
        }
    )
    return program.model_proto.SerializeToString()


def _described(name: str, part: Tensor) -> dict[str, Any]:
    """A tensor of the initial state of one row: shape, type, and the value of all elements or the data."""
    facts = {"name": name, "shape": list(part.shape), "dtype": str(part.dtype).removeprefix("torch.")}
    values = part.unique()
    if len(values) < 2:
        return {**facts, "fill": values[0].item() if len(values) else 0}
    return {**facts, "data": base64.b64encode(part.contiguous().numpy().tobytes()).decode()}


class Stateful(nn.Module):
    """The model with its state as tensors of its own, and recurrent layers that the exporter supports."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.RNNBase):
                    setattr(parent, name, OnnxRecurrent(child))
        self.model = model

    def initial_state(self, rows: int) -> State:
        """With room for a whole context."""
        return self.model.init_state(rows, self.model.max_len or 1)

    def forward(self, tokens_BT: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        logits_BTV, next_state = self.model(tokens_BT, tuple(part.clone() for part in state))
        return (logits_BTV, *next_state)


GATES: dict[type[nn.RNNBase], tuple[str, list[int]]] = {
    nn.RNN: ("RNN", [0]),
    nn.GRU: ("GRU", [1, 0, 2]),
    nn.LSTM: ("LSTM", [0, 3, 1, 2]),
}
"""ONNX's operator, and the index of each of its gates in PyTorch's order."""


class OnnxRecurrent(nn.Module):
    """PyTorch's recurrent layers as ONNX operators; the exporter would unroll them for a fixed length."""

    def __init__(self, layers: nn.RNNBase) -> None:
        super().__init__()
        self.size = layers.hidden_size
        self.operator, order = GATES[type(layers)]
        self.weights = nn.ParameterList()
        for parts in layers.all_weights:
            w, r, b, c = (torch.cat([part.split(self.size)[gate] for gate in order])[None] for part in parts)
            self.weights.extend([w, r, torch.cat([b, c], dim=1)])

    def forward(
        self, x_BTC: Tensor, initial: Tensor | tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor | tuple[Tensor, ...]]:
        """PyTorch's arguments and results: the parts of the state are (layers, B, H)."""
        parts = initial if isinstance(initial, tuple) else (initial,)
        x = x_BTC.transpose(0, 1)
        attributes: dict[str, Any] = {"hidden_size": self.size}
        if self.operator == "GRU":
            attributes["linear_before_reset"] = 1
        final: list[Sequence[Tensor]] = []
        for i in range(len(self.weights) // 3):
            weights = self.weights[3 * i : 3 * i + 3]
            last = (1, x.shape[1], self.size)
            y, *states = torch.onnx.ops.symbolic_multi_out(
                self.operator,
                (x, *weights, None, *(part[i : i + 1] for part in parts)),
                attributes,
                dtypes=(x.dtype,) * (1 + len(parts)),
                shapes=((x.shape[0], 1, x.shape[1], self.size), *(last for _ in parts)),
            )
            x = y.squeeze(1)
            final.append(states)
        ends = tuple(torch.cat(layers) for layers in zip(*final, strict=True))
        return x.transpose(0, 1), ends if len(ends) > 1 else ends[0]


def _cummax_translation() -> Any:
    """ONNX translation of ``cummax`` for non-negative numbers, along the last of two dimensions."""
    op: Any = importlib.import_module("onnxscript").opset20

    def cummax(self: Any, dim: int) -> Any:
        length = op.Shape(self, start=1)
        mask = op.Trilu(op.Expand(op.Constant(value_int=1), op.Concat(length, length, axis=0)), upper=0)
        values = op.ReduceMax(op.Mul(op.Unsqueeze(self, [1]), mask), [-1], keepdims=0)
        return values, values

    return cummax


FORMAT = ExportFormat(suffix=".onnx", files=lambda run: {"": onnx_bytes(run.model, run.tokenizer)})
