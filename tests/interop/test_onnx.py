"""ONNX graphs, run by onnxruntime, against the model's logits."""

from __future__ import annotations

import base64
import functools
import json
from typing import Any

import numpy as np
import pytest
import torch

from makemore.errors import UserError
from makemore.interop.onnx import onnx_bytes
from makemore.models import MODELS
from makemore.models.base import CountModel, LanguageModel
from makemore.models.wavenet import WaveNet, WaveNetConfig
from makemore.tokenizers import fit_tokenizer, tokenizer_from_dict
from tests.conformance.fixtures import VOCAB, nonzero_model
from tests.interop.nonzero_models import nonzero_transformer

pytestmark = pytest.mark.slow

TOKENIZER = fit_tokenizer("char", ["abcdefghij"])
EXPORTABLE = [name for name in MODELS if not issubclass(MODELS.get(name), CountModel)]


def onnx_session(model: LanguageModel) -> Any:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    return runtime.InferenceSession(onnx_bytes(model, TOKENIZER), providers=["CPUExecutionProvider"])


def initial_state(graph: Any, rows: int) -> dict[str, np.ndarray]:
    """As the documentation says."""
    state = {}
    for part in json.loads(graph.get_modelmeta().custom_metadata_map["makemore.initial_state"]):
        if "fill" in part:
            one = np.full(part["shape"], part["fill"], part["dtype"])
        else:
            one = np.frombuffer(base64.b64decode(part["data"]), part["dtype"]).reshape(part["shape"])
        state[part["name"]] = np.repeat(one, rows, axis=0)
    return state


def assert_equal_logits(graph: Any, model: LanguageModel) -> None:
    for rows, length, piece in ((3, 7, 7), (1, 1, 1), (2, 40, 40), (2, 40, 1), (3, 31, 9)):
        tokens = torch.randint(0, VOCAB, (rows, length))  # boundaries included
        tokens[:, 0] = 0
        expected = model(tokens)[0]
        assert expected.std() > 0.05
        state, pieces = initial_state(graph, rows), []
        for part in tokens.split(piece, dim=1):
            logits, *following = graph.run(None, {"tokens": part.numpy(), **state})
            state = dict(zip(state, following, strict=True))
            pieces.append(torch.from_numpy(logits))
        torch.testing.assert_close(torch.cat(pieces, dim=1), expected, atol=1e-4, rtol=0)


@functools.cache
def exported(name: str) -> tuple[Any, LanguageModel]:
    """The graph and its model; each layer of a transformer takes seconds to export."""
    model = nonzero_transformer(VOCAB) if name == "transformer" else nonzero_model(name)
    return onnx_session(model), model


@pytest.mark.parametrize("name", EXPORTABLE)
def test_logits_are_equal(name: str) -> None:
    assert_equal_logits(*exported(name))


@pytest.mark.parametrize(
    "make_model",
    [
        lambda: nonzero_transformer(VOCAB, n_layer=1, style="gpt2"),
        lambda: nonzero_transformer(VOCAB, n_layer=1, conv=1, dropout=0.5),
        lambda: WaveNet(WaveNetConfig(style="gated"), VOCAB, 0).eval(),
    ],
    ids=["gpt2", "no convolutions", "gated"],
)
def test_logits_are_equal_in_other_styles(make_model: Any) -> None:
    torch.manual_seed(0)
    model = make_model()
    with torch.no_grad():
        model.head.weight.add_(torch.randn_like(model.head.weight))
    assert_equal_logits(onnx_session(model), model)


def test_metadata_holds_the_tokenizer() -> None:
    metadata = exported("mlp")[0].get_modelmeta().custom_metadata_map
    tokenizer = tokenizer_from_dict(json.loads(metadata["makemore.tokenizer"]))
    assert tokenizer.encode("jab").tolist() == TOKENIZER.encode("jab").tolist()
    assert metadata["makemore.boundary_id"] == "0"
    metadata = exported("transformer")[0].get_modelmeta().custom_metadata_map
    assert json.loads(metadata["makemore.max_len"]) == 48


def test_export_leaves_the_model_unchanged() -> None:
    model = nonzero_model("lstm").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    onnx_session(model)
    assert model.training
    assert type(model.layers) is torch.nn.LSTM
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_count_models_are_refused() -> None:
    with pytest.raises(UserError, match="--format arpa"):
        onnx_bytes(nonzero_model("count"), TOKENIZER)


def test_missing_packages_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"makemore\[onnx\]"):
        onnx_bytes(nonzero_model("mlp"), TOKENIZER)
