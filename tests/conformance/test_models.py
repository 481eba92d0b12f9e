"""The contract of LanguageModel, for every registered model."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch

from makemore.models import MODELS
from makemore.models.base import CountModel, MixtureModel
from makemore.runtime.files import read_tensors, write_tensors
from tests.conformance.fixtures import BOUNDARY, VOCAB, documents, limit_length, nonzero_model

LENGTH = 40
TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}

pytestmark = pytest.mark.parametrize("name", list(MODELS))


def logits_of(model, tokens):
    with torch.no_grad():
        return model(tokens)[0]


def test_shapes_and_no_state_returned_without_an_input_state(name):
    model = nonzero_model(name)
    tokens = documents(3, limit_length(model, LENGTH))[:, :-1]
    with torch.no_grad():
        logits, state = model(tokens)
    assert logits.shape == (*tokens.shape, VOCAB)
    assert state is None
    initial = model.init_state(3, 16)
    assert isinstance(initial, tuple)
    assert all(part.shape[0] == 3 for part in initial)


def test_logits_are_not_uniform(name):
    model = nonzero_model(name)
    logits = logits_of(model, documents(2, limit_length(model, LENGTH))[:, :-1])
    assert logits.softmax(-1).std() > 1e-3


def test_probabilities_sum_to_one(name):
    model = nonzero_model(name)
    logits = logits_of(model, documents(4, limit_length(model, LENGTH))[:, :-1]).double()
    sums = logits.softmax(-1).sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-9, rtol=0)
    if isinstance(model, CountModel):
        raw = logits.exp().sum(-1)
        torch.testing.assert_close(raw, torch.ones_like(raw), atol=1e-5, rtol=0)


@pytest.mark.parametrize("document_ends", ["nonempty", "never"])
def test_a_boundary_that_cannot_come_has_no_probability(name, document_ends):
    model = nonzero_model(name)
    tokens = documents(4, limit_length(model, LENGTH))[:, :-1]
    before = logits_of(model, tokens)
    model.set_document_ends(document_ends)
    logits = logits_of(model, tokens)
    is_excluded = tokens == BOUNDARY if document_ends == "nonempty" else torch.ones_like(tokens, dtype=bool)
    assert logits.softmax(-1)[is_excluded][:, BOUNDARY].max() < 1e-10
    if not isinstance(model, MixtureModel):  # which normalises its members' probabilities
        assert torch.equal(logits[..., 1:], before[..., 1:])
    assert torch.equal(logits[~is_excluded], before[~is_excluded])


def test_logits_are_causal(name):
    model = nonzero_model(name)
    tokens = documents(2, limit_length(model, LENGTH))[:, :-1]
    changed = tokens.clone()
    middle = tokens.shape[1] // 2
    changed[:, middle:] = changed[:, middle:] % (VOCAB - 1) + 1
    torch.testing.assert_close(
        logits_of(model, tokens)[:, :middle], logits_of(model, changed)[:, :middle], **TOLERANCE
    )
    assert not torch.allclose(logits_of(model, tokens)[:, middle], logits_of(model, changed)[:, middle])


@pytest.mark.parametrize("chunk_ends", [(1,), (2, 3, 4, 9), (17, 18, 30), tuple(range(1, 40))])
def test_chunked_calls_with_state_match_one_call(name, chunk_ends):
    model = nonzero_model(name)
    tokens = documents(3, limit_length(model, LENGTH))[:, :-1]
    edges = [0, *(c for c in chunk_ends if c < tokens.shape[1]), tokens.shape[1]]
    state = model.init_state(3, tokens.shape[1])
    chunks = []
    with torch.no_grad():
        for a, b in itertools.pairwise(edges):
            logits, state = model(tokens[:, a:b], state)
            chunks.append(logits)
    torch.testing.assert_close(torch.cat(chunks, 1), logits_of(model, tokens), **TOLERANCE)


def test_rows_are_independent(name):
    model = nonzero_model(name)
    tokens = documents(5, limit_length(model, LENGTH))[:, :-1]
    together = logits_of(model, tokens)
    for row in range(5):
        torch.testing.assert_close(logits_of(model, tokens[row : row + 1])[0], together[row], **TOLERANCE)


def test_state_rows_can_be_selected(name):
    model = nonzero_model(name)
    tokens = documents(4, limit_length(model, 20))[:, :-1]
    half = tokens.shape[1] // 2
    rows = torch.tensor([2, 0])
    with torch.no_grad():
        _, state = model(tokens[:, :half], model.init_state(4, tokens.shape[1]))
        picked_state = tuple(part[rows] for part in state)
        logits, _ = model(tokens[rows, half:], picked_state)
    torch.testing.assert_close(logits, logits_of(model, tokens)[rows, half:], **TOLERANCE)


def test_saving_and_loading_gives_the_same_logits(name, tmp_path):
    model = nonzero_model(name)
    write_tensors(tmp_path / "m.safetensors", model.state_dict(), "run")
    other = MODELS.get(name)(model.config, VOCAB, 0)
    other.load_state_dict(read_tensors(tmp_path / "m.safetensors", "run"))
    tokens = documents(2, limit_length(model, LENGTH))[:, :-1]
    assert torch.equal(logits_of(other.eval(), tokens), logits_of(model, tokens))


def test_a_copy_has_the_same_logits(name):
    model, tokens = nonzero_model(name), documents(2, 9)[:, :-1]
    expected = logits_of(model, tokens)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits_of(other, tokens), expected)


def test_every_setting_has_help_text(name):
    kind = MODELS.get(name)
    for setting, field in kind.Config.model_fields.items():
        assert field.description or setting == "name", setting
    assert kind.Config().name == name
    assert kind.summary


def test_packed_documents_match_separate_rows(name):
    model = nonzero_model(name)
    if not model.supports_packing:
        pytest.skip("the model doesn't support packing")
    parts = [documents(2, n, seed=n)[:, :-1] for n in (9, 14, 11)]
    packed = logits_of(model, torch.cat(parts, dim=1))
    separate = torch.cat([logits_of(model, part) for part in parts], dim=1)
    torch.testing.assert_close(packed, separate, **TOLERANCE)
    state = model.init_state(2, 34)
    chunks = []
    with torch.no_grad():
        for chunk in torch.cat(parts, dim=1).split(5, dim=1):
            logits, state = model(chunk, state)
            chunks.append(logits)
    torch.testing.assert_close(torch.cat(chunks, dim=1), separate, **TOLERANCE)
