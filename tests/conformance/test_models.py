"""The laws of the contract, for every registered rung."""

from __future__ import annotations

import itertools

import pytest
import torch

from makemore.models import MODELS
from makemore.models.base import CountModel
from makemore.runtime.files import read_tensors, write_tensors
from tests.conformance.fixtures import VOCAB, documents, prepared, room

LENGTH = 40
TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}

pytestmark = pytest.mark.parametrize("name", list(MODELS))


def logits_of(model, tokens):
    with torch.no_grad():
        return model(tokens)[0]


def test_shapes_and_no_state_out_without_state_in(name):
    model = prepared(name)
    tokens = documents(3, room(model, LENGTH))[:, :-1]
    with torch.no_grad():
        logits, state = model(tokens)
    assert logits.shape == (*tokens.shape, VOCAB)
    assert state is None
    initial = model.init_state(3, 16)
    assert isinstance(initial, tuple)
    assert all(part.shape[0] == 3 for part in initial)


def test_logits_say_something(name):
    model = prepared(name)
    logits = logits_of(model, documents(2, room(model, LENGTH))[:, :-1])
    assert logits.softmax(-1).std() > 1e-3


def test_probabilities_sum_to_one(name):
    model = prepared(name)
    logits = logits_of(model, documents(4, room(model, LENGTH))[:, :-1]).double()
    sums = logits.softmax(-1).sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-9, rtol=0)
    if isinstance(model, CountModel):
        raw = logits.exp().sum(-1)
        torch.testing.assert_close(raw, torch.ones_like(raw), atol=1e-5, rtol=0)


def test_causal(name):
    model = prepared(name)
    tokens = documents(2, room(model, LENGTH))[:, :-1]
    changed = tokens.clone()
    middle = tokens.shape[1] // 2
    changed[:, middle:] = changed[:, middle:] % (VOCAB - 1) + 1
    torch.testing.assert_close(
        logits_of(model, tokens)[:, :middle], logits_of(model, changed)[:, :middle], **TOLERANCE
    )
    assert not torch.allclose(logits_of(model, tokens)[:, middle], logits_of(model, changed)[:, middle])


@pytest.mark.parametrize("cuts", [(1,), (2, 3, 4, 9), (17, 18, 30), tuple(range(1, 40))])
def test_any_chunks_equal_one_call(name, cuts):
    model = prepared(name)
    tokens = documents(3, room(model, LENGTH))[:, :-1]
    edges = [0, *(c for c in cuts if c < tokens.shape[1]), tokens.shape[1]]
    state = model.init_state(3, tokens.shape[1])
    pieces = []
    with torch.no_grad():
        for a, b in itertools.pairwise(edges):
            logits, state = model(tokens[:, a:b], state)
            pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, 1), logits_of(model, tokens), **TOLERANCE)


def test_a_row_does_not_depend_on_its_batch_mates(name):
    model = prepared(name)
    tokens = documents(5, room(model, LENGTH))[:, :-1]
    together = logits_of(model, tokens)
    for row in range(5):
        torch.testing.assert_close(logits_of(model, tokens[row : row + 1])[0], together[row], **TOLERANCE)


def test_state_rows_can_be_picked(name):
    model = prepared(name)
    tokens = documents(4, room(model, 20))[:, :-1]
    half = tokens.shape[1] // 2
    rows = torch.tensor([2, 0])
    with torch.no_grad():
        _, state = model(tokens[:, :half], model.init_state(4, tokens.shape[1]))
        picked = tuple(part[rows] for part in state)
        logits, _ = model(tokens[rows, half:], picked)
    torch.testing.assert_close(logits, logits_of(model, tokens)[rows, half:], **TOLERANCE)


def test_save_and_load_are_the_identity(name, tmp_path):
    model = prepared(name)
    write_tensors(tmp_path / "m.safetensors", model.state_dict(), "run")
    other = MODELS.get(name)(model.config, VOCAB, 0)
    other.load_state_dict(read_tensors(tmp_path / "m.safetensors", "run"))
    tokens = documents(2, room(model, LENGTH))[:, :-1]
    assert torch.equal(logits_of(other.eval(), tokens), logits_of(model, tokens))


def test_every_setting_is_explained(name):
    import dataclasses

    for field in dataclasses.fields(MODELS.get(name).Config):
        assert field.metadata.get("help"), field.name
    assert MODELS.get(name).summary


def test_a_boundary_in_a_row_begins_a_document(name):
    model = prepared(name)
    if not model.supports_packing:
        pytest.skip("this rung takes a row for each document")
    parts = [documents(2, n, seed=n)[:, :-1] for n in (9, 14, 11)]
    packed = logits_of(model, torch.cat(parts, dim=1))
    alone = torch.cat([logits_of(model, part) for part in parts], dim=1)
    torch.testing.assert_close(packed, alone, **TOLERANCE)
    state = model.init_state(2, 34)
    pieces = []
    with torch.no_grad():
        for chunk in torch.cat(parts, dim=1).split(5, dim=1):
            logits, state = model(chunk, state)
            pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, dim=1), alone, **TOLERANCE)
