"""Export a model as an ONNX graph for onnxruntime and others: tokens (B, T) in, logits (B, T, V) out.

Documents begin with the boundary token; the graph carries no state.
"""

from __future__ import annotations

import copy
import importlib
import json
import logging
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from makemore.errors import UserError, require_packages
from makemore.interop.base import ExportFormat
from makemore.models.base import CountModel, LanguageModel, MixtureModel
from makemore.tokenizers import Tokenizer

OPSET = 20


def onnx_bytes(model: LanguageModel, tokenizer: Tokenizer) -> bytes:
    """The serialised graph, with tokenizer and boundary as metadata; see ``check_exportable`` for errors."""
    check_exportable(model)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    graph = LogitsOnly(copy.deepcopy(model).cpu().eval())
    length = 8 if model.supports_streaming or model.max_len is None else min(8, model.max_len)
    dynamic = torch.export.Dim.DYNAMIC
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # from the exporter itself
        program: Any = torch.onnx.export(
            graph,
            (torch.full((2, length), model.boundary_id),),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=({0: dynamic, 1: dynamic if length > 1 else None},),
            input_names=["tokens"],
            output_names=["logits"],
            custom_translation_table={torch.ops.aten.cummax.default: _cummax_translation()},
            verbose=False,
        )
    program.model.metadata_props.update(
        {
            "makemore.tokenizer": json.dumps(tokenizer.to_dict(), ensure_ascii=False),
            "makemore.boundary_id": str(model.boundary_id),
            "makemore.max_len": json.dumps(None if model.supports_streaming else model.max_len),
        }
    )
    return program.model_proto.SerializeToString()


def check_exportable(model: LanguageModel) -> None:
    """Raise UserError if the model can't be exported or the optional packages are missing."""
    members = model.members if isinstance(model, MixtureModel) else [model]
    if any(isinstance(member, CountModel) for member in members):
        raise UserError("ONNX can't represent models that count; --format arpa takes count")
    require_packages("--format onnx", ("onnx", "onnxscript"), extra="onnx")


class LogitsOnly(nn.Module):
    """The model with logits as its only output and recurrent layers that the exporter supports."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.RNNBase):
                    setattr(parent, name, OnnxRecurrent(child))
        self.model = model

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return self.model(tokens_BT)[0]


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

    def forward(self, x_BTC: Tensor) -> tuple[Tensor, None]:
        x = x_BTC.transpose(0, 1)
        attributes: dict[str, Any] = {"hidden_size": self.size}
        if self.operator == "GRU":
            attributes["linear_before_reset"] = 1
        for i in range(0, len(self.weights), 3):
            inputs = (x, *self.weights[i : i + 3])
            shape = (x.shape[0], 1, x.shape[1], self.size)
            y: Any = torch.onnx.ops.symbolic(self.operator, inputs, attributes, dtype=x.dtype, shape=shape)
            x = y.squeeze(1)
        return x.transpose(0, 1), None


def _cummax_translation() -> Any:
    """ONNX translation of ``cummax`` for non-negative numbers, along the last of two dimensions."""
    op: Any = importlib.import_module("onnxscript").opset20

    def cummax(self: Any, dim: int) -> Any:
        length = op.Shape(self, start=1)
        mask = op.Trilu(op.Expand(op.Constant(value_int=1), op.Concat(length, length, axis=0)), upper=0)
        values = op.ReduceMax(op.Mul(op.Unsqueeze(self, [1]), mask), [-1], keepdims=0)
        return values, values

    return cummax


FORMAT = ExportFormat(suffix=".onnx", files=lambda model, tokenizer: {"": onnx_bytes(model, tokenizer)})
