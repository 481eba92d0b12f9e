"""Context mixing: the C code against its Python form, and both against probabilities computed by hand."""

from __future__ import annotations

import dataclasses
import math
import random

import numpy as np
import pytest
import torch

from makemore.corpus.loader import OrderedLoader
from makemore.errors import UserError
from makemore.evaluation.adaptive import DynamicSettings, make_reader
from makemore.models.context_mixing import ContextMixing, ContextMixingConfig, memory
from makemore.models.context_mixing.engine_base import Engine, Rates
from makemore.models.context_mixing.native import LIBRARY, NativeEngine
from makemore.models.context_mixing.plain import PlainEngine
from makemore.models.context_mixing.plain.mixing import JOINT_SHARE, Mixing, Situation
from makemore.models.context_mixing.plain.table import Item
from makemore.models.context_mixing.tree import code_tree
from makemore.runtime import native
from makemore.sampling.decoders import fast_decoder
from makemore.sampling.generate import generate
from makemore.sampling.logits import SampleParams
from makemore.tokenizers import fit_tokenizer
from makemore.tokenizers.traits import token_traits
from makemore.types import Batch, Split, TokenKind

RATES = Rates(mixer=0.006, correction=0.02)
needs_compiler = pytest.mark.skipif(LIBRARY.load() is None, reason="no C compiler")


def verse(n_lines: int, seed: int = 0) -> str:
    """Lines of words in upper and lower case, numbers, indentation, blank lines and repeats."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdeé", k=rng.randint(1, 5))) for _ in range(25)]
    lines = []
    for _ in range(n_lines):
        chosen = [rng.choice([str.lower, str.title, str.upper])(w) for w in rng.choices(words, k=4)]
        repeated = rng.choice(lines) if lines and rng.random() < 0.3 else None
        lines.append(repeated or rng.choice(["", "  "]) + f"{' '.join(chosen)}, {rng.randint(0, 99)}")
        if rng.random() < 0.1:
            lines.append("")
    return "\n".join(lines) + "\n"


def text_model(text: str, config: ContextMixingConfig | None = None) -> tuple[ContextMixing, np.ndarray]:
    """A model that has read a text by characters, and the text's tokens."""
    tokenizer = fit_tokenizer("char", [text])
    tokens = tokenizer.encode(text).astype(np.int64)
    model = ContextMixing(config or ContextMixingConfig(), tokenizer.vocab_size, 0)
    model.prepare(tokens, token_traits(tokenizer))
    inputs = np.append(0, tokens[:-1])
    model.count_batch(Batch(torch.from_numpy(inputs)[None], torch.from_numpy(tokens)[None]))
    model.finish()
    return model.eval(), tokens


def engines(tokens: np.ndarray, tokenizer) -> list[tuple[Engine, memory.Arrays]]:
    result = []
    for kind in (NativeEngine, PlainEngine):
        arrays = {**memory.empty_arrays(), **memory.text_arrays(tokens, token_traits(tokenizer), 0)}
        # Few slots and short lists, so that contexts replace each other and lists grow.
        arrays |= memory.learned_arrays(tokenizer.vocab_size, len(tokens), max_bytes=60_000)
        code = (LIBRARY.load(),) if kind is NativeEngine else ()
        result.append((kind(arrays, 0, *code), arrays))
    return result


@needs_compiler
@pytest.mark.parametrize("as_lines", [False, True])
def test_c_and_python_learn_the_same(as_lines):
    text = verse(28)
    tokenizer = fit_tokenizer("char", [text])
    tokens = tokenizer.encode(text).astype(np.int64)
    if as_lines:
        tokens = tokenizer.encode_lines([line for line in text.split("\n") if line]).astype(np.int64)
    inputs = np.append(0, tokens[:-1])
    results = []
    for engine, arrays in engines(tokens, tokenizer):
        position = np.zeros(memory.POSITION_SIZE, np.int64)
        nats = engine.read(position, inputs, tokens, RATES, counts=True)
        frozen = np.zeros((2, memory.POSITION_SIZE), np.int64)
        logits = engine.distributions(np.stack([inputs[:9], inputs[20:29]]), frozen)
        uniform = np.random.default_rng(0).random((12, 2))
        samples = [engine.sample(frozen, u).tolist() for u in uniform]
        results.append((nats, logits, samples, {**arrays, "position": position, "rows": frozen}))
    (nats, logits, samples, arrays), (nats2, logits2, samples2, arrays2) = results
    np.testing.assert_allclose(nats, nats2, atol=2e-4)
    np.testing.assert_allclose(np.exp(logits), np.exp(logits2), atol=2e-5)
    assert samples == samples2
    assert arrays["counters"][memory.LISTS_USED] > 100
    for name, array in arrays.items():
        if array.dtype == np.float32:
            np.testing.assert_allclose(array, arrays2[name], atol=1e-3, err_msg=name)
        else:
            np.testing.assert_array_equal(array, arrays2[name], err_msg=name)


def test_a_decision_is_the_mixture_of_its_inputs():
    """Inputs, mixer and correction of one node, recomputed in float64."""
    rng = np.random.default_rng(0)
    tokens = np.array([1, 2, 1, 2, 3, 1, 2])
    traits = token_traits(fit_tokenizer("char", ["abc"]))
    arrays = memory.text_arrays(tokens, traits, 0) | memory.learned_arrays(4, len(tokens), 0)
    arrays["weights"][:] = rng.normal(0, 0.1, arrays["weights"].shape)
    mixing = Mixing(arrays)
    situation = Situation(
        selectors=[0] * memory.N_SETS, order=1, apm_hashes=[5, 6, 7], expected=[-1, -1], match_levels=[0, 0]
    )
    evidence = [[Item(2, 3, 2, 3), Item(1, 5, 1, 2)]] + [[] for _ in range(memory.N_CONTEXTS - 1)]
    p, decision = mixing.decide(2, 0, evidence, (0, 4), situation)
    n0, n1, prior = 5, 3, 0.5
    x = np.zeros(memory.N_INPUTS)
    x[0] = math.log((n1 + 0.4) / (n0 + 0.4))  # how the adaptive probability of these counts begins
    interpolated = [(n1 + 1.4 * prior) / (n0 + n1 + 1.4), *[(2 + 1.4 * prior) / (3 + 1.4)] * 9]
    others = dict.fromkeys(memory.CONTEXTS, interpolated[1]) | dict.fromkeys(
        ("W1", "W2", "W3", "F3", "F5", "F7"), prior
    )
    for c, name in enumerate(memory.CONTEXTS):
        q = interpolated[c] if c < 10 else others[name]
        x[memory.N_CONTEXTS + c] = math.log(q / (1 - q))
    x[2 * memory.N_CONTEXTS] = math.log((3 + 0.4) / (2 + 0.4))
    x[3 * memory.N_CONTEXTS] = math.log((n1 + 0.4) / (n0 + 0.4)) * (n0 + n1) / 15
    x[3 * memory.N_CONTEXTS + 10 + 3] = 0.5
    np.testing.assert_allclose(decision.inputs, x, atol=1e-5)
    logits = arrays["weights"].astype(np.float64)[decision.rows] @ x
    mixed = 1 / (1 + math.exp(-logits.mean()))
    low = int(logits.mean() + 11)
    curve = 1 / (1 + np.exp(11 - np.arange(low, low + 2)))
    corrected = np.interp(logits.mean() + 11, [low, low + 1], curve)
    assert p == pytest.approx(0.5 * mixed + 0.5 * corrected, abs=1e-6)


def test_learning_follows_the_gradient():
    """A mixer's step follows the gradient of its own prediction's nats, and the error of all together."""
    arrays = memory.text_arrays(np.array([1, 2, 3]), token_traits(fit_tokenizer("char", ["abc"])), 0)
    arrays |= memory.learned_arrays(4, 3, 0)
    mixing = Mixing(arrays)
    mixing.lr = 1e-3
    situation = Situation(
        selectors=[0] * memory.N_SETS, order=1, apm_hashes=[5, 6, 7], expected=[-1, -1], match_levels=[0, 0]
    )
    evidence = [[Item(2, 3, 2, 3)] for _ in range(memory.N_CONTEXTS)]
    _, decision = mixing.decide(2, 0, evidence, (0, 4), situation)
    row = decision.rows[0]
    weights = torch.from_numpy(arrays["weights"][row].astype(np.float64)).requires_grad_()
    logit = weights @ torch.from_numpy(decision.inputs.astype(np.float64))
    torch.nn.functional.softplus(-logit).backward()
    joint_error = 1 - 1 / (1 + math.exp(-sum(decision.finals) / 2))
    expected = (1 - JOINT_SHARE) * -weights.grad.numpy() + JOINT_SHARE * joint_error * decision.inputs
    before = arrays["weights"][row].copy()
    mixing.learn(decision, 1, order=1)
    np.testing.assert_allclose((arrays["weights"][row] - before) / 1e-3, expected, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("vocab_size", [2, 3, 7, 300])
def test_the_code_tree_has_every_token_once(vocab_size):
    rng = np.random.default_rng(0)
    tree = code_tree(np.minimum(rng.geometric(0.1, 4000), vocab_size - 1), vocab_size)
    assert sorted(tree.rank_V.tolist()) == list(range(vocab_size))
    children = {*tree.left_V.tolist(), *tree.right_V.tolist()}
    assert {memory.tree_of(tree._asdict(), 0).root} == set(range(1, vocab_size)) - children


def test_tokens_in_similar_contexts_are_neighbours_in_the_tree():
    rng = np.random.default_rng(0)
    # After 1 come 3 or 4, after 2 come 5 or 6, in equal numbers.
    pairs = [[a, rng.integers(3, 5) if a == 1 else rng.integers(5, 7)] for a in rng.integers(1, 3, 3000)]
    ranks = code_tree(np.concatenate(pairs), 7).rank_V
    assert abs(ranks[3] - ranks[4]) == abs(ranks[5] - ranks[6]) == 1


def test_scores_are_those_of_forward():
    model, _ = text_model(verse(60))
    tokens = np.random.default_rng(0).integers(1, model.vocab_size, 300)
    logits, _ = model(torch.from_numpy(np.append(0, tokens[:-1]))[None])
    expected = torch.nn.functional.cross_entropy(logits[0], torch.from_numpy(tokens), reduction="none")
    np.testing.assert_allclose(model.score(tokens, np.array([0])), expected, atol=1e-4)


@pytest.mark.parametrize("rates", [None, RATES])
@pytest.mark.parametrize("kind", [pytest.param(NativeEngine, marks=needs_compiler), PlainEngine])
def test_whole_distributions_change_nothing_that_is_learned(kind, rates):
    """What is computed of all tokens, for mixtures, before learning one."""
    text = verse(60)
    model, _ = text_model(text)
    tokens = (
        np.random.default_rng(1)
        .permutation(fit_tokenizer("char", [text]).encode(text))[:250]
        .astype(np.int64)
    )
    results = []
    for logits_NV in (None, np.zeros((len(tokens), model.vocab_size), np.float32)):
        arrays = memory.copied(model._arrays)
        engine = kind(arrays, 0, *((LIBRARY.load(),) if kind is NativeEngine else ()))
        position, inputs = np.zeros(memory.POSITION_SIZE, np.int64), np.append(0, tokens[:-1])
        nats = engine.read(position, inputs, tokens, rates, True, logits_NV)
        results.append((nats, arrays))
    assert np.array_equal(results[0][0], results[1][0])
    if rates is None:  # else the weights learn from the first decisions about a token before the next ones
        np.testing.assert_allclose(-logits_NV[np.arange(len(tokens)), tokens], results[0][0], atol=1e-5)
    for name, array in results[0][1].items():
        assert np.array_equal(array, results[1][1][name]), name


@pytest.mark.parametrize("shape", [(1, 300), (2, 150), (7, 40)])
@pytest.mark.parametrize("n_threads", [2, 3])
def test_threads_share_the_rows_or_the_time(shape, n_threads, monkeypatch):
    model, tokens = text_model(verse(60))
    rows = torch.from_numpy(np.resize(tokens, shape))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    expected, (expected_state,) = model(rows, model.init_state(shape[0], 0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    logits, (state,) = model(rows, model.init_state(shape[0], 0))
    assert torch.equal(logits, expected)
    assert torch.equal(state, expected_state)


@pytest.mark.parametrize("mode", ["frozen", "cache", "adaptive"])
def test_probabilities_sum_to_one_while_learning(mode):
    model, tokens = text_model(verse(40))
    history = tokens[-50:]
    starts = np.array([0])
    total = 0.0
    for token in range(1, model.vocab_size):
        total += math.exp(-model.score(np.append(history, token), starts, mode)[-1])
    assert total == pytest.approx(1, abs=1e-5)


def test_learning_helps_on_a_text_that_repeats_itself_and_leaves_the_model_unchanged():
    model, _ = text_model(verse(80, seed=1))
    other = verse(30, seed=2)
    tokens = fit_tokenizer("char", [verse(80, seed=1)]).encode(other + other).astype(np.int64)
    before = {name: array.clone() for name, array in model.state_dict().items()}
    frozen, cache, adaptive = (
        model.score(tokens, np.array([0]), mode) for mode in ("frozen", "cache", "adaptive")
    )
    half = len(tokens) // 2
    assert cache[half:].mean() < 0.5 * frozen[half:].mean()
    assert adaptive.mean() < cache.mean()
    np.testing.assert_array_equal(frozen, model.score(tokens, np.array([0])))
    assert all(torch.equal(array, before[name]) for name, array in model.state_dict().items())


def test_an_adaptive_score_that_learns_nothing_is_the_cache():
    model, tokens = text_model(verse(40))
    position = np.zeros(memory.POSITION_SIZE, np.int64)
    inputs = np.append(0, tokens[:-1])
    frozen_cells = model._copy()
    for name in ("cells", "node_cells"):
        frozen_cells._arrays[name][:, 1] = 1e30  # so many updates that another changes nothing
    adaptive = frozen_cells.engine.read(position, inputs, tokens, Rates(0.0, 0.0), counts=True)
    np.testing.assert_allclose(adaptive, model.score(tokens, np.array([0]), "cache"), atol=2e-3)


def test_what_is_learned_from_a_document_is_kept_for_the_next():
    model, _ = text_model(verse(80, seed=1))
    line = fit_tokenizer("char", [verse(80, seed=1)]).encode(verse(3, seed=5)).astype(np.int64)
    nats = model.score(np.concatenate([line, line]), np.array([0, len(line)]), "cache")
    first, second = nats[: len(line)], nats[len(line) :]
    assert second.mean() < 0.7 * first.mean()
    frozen = model.score(np.concatenate([line, line]), np.array([0, len(line)]))
    np.testing.assert_array_equal(frozen[: len(line)], frozen[len(line) :])


def lines_model() -> ContextMixing:
    rng = random.Random(0)
    lines = ["".join(rng.choices("abc", k=rng.randint(1, 6))) for _ in range(400)]
    tokenizer = fit_tokenizer("char", lines)
    tokens = tokenizer.encode_lines(lines)
    starts = np.flatnonzero(np.append(True, tokens[:-1] == 0))
    split = Split(
        "train", tokens, starts, np.diff(starts, append=len(tokens)), np.diff(starts, append=len(tokens))
    )
    model = ContextMixing(ContextMixingConfig(), tokenizer.vocab_size, 0)
    model.prepare(tokens, token_traits(tokenizer))
    for batch in OrderedLoader(split, 0, 256, in_order=True):
        model.count_batch(batch)
    model.finish()
    return model.eval()


def test_lines_are_not_blank_and_end():
    model = lines_model()
    p = model(torch.tensor([[0, 1, 2, 3, 1, 2, 3]]))[0].exp()[0]
    assert p[0, 0] == 0
    assert (p[1:, 0] > 0.01).all()
    assert p[6, 0] > p[1, 0]


def test_running_text_has_no_boundary():
    model, _ = text_model(verse(20))
    assert (model(torch.tensor([[0, 1, 2]]))[0].exp()[..., 0] == 0).all()


def test_samples_have_the_distribution_of_the_model():
    model = lines_model()
    params, n = SampleParams(), 4000
    ids = next(generate(model, np.zeros((1, 1), np.int64), 1, params, samples=range(n)))
    p = model(torch.zeros(1, 1, dtype=torch.int64))[0].exp()[0, 0].numpy()
    error = np.sqrt(p * (1 - p) / n)
    assert (np.abs(np.bincount(ids, minlength=len(p)) / n - p) <= 4 * error).all()


def test_the_decoder_continues_from_a_state():
    model, tokens = text_model(verse(40))
    decoder = fast_decoder(model)
    assert decoder is not None
    _, state = model(torch.from_numpy(tokens[None, :20]), model.init_state(1, 32))
    decoder.load(state)
    stepped = np.stack([decoder.step(tokens[i : i + 1])[0] for i in range(20, 30)])
    expected = model(torch.from_numpy(tokens[None, :30]))[0][0, 20:].numpy()
    np.testing.assert_array_equal(stepped, expected)


def test_token_traits_of_characters_and_bytes():
    chars = fit_tokenizer("char", ["aA1 \né."])
    kinds = dict(zip("\n .1Aaé", token_traits(chars).kinds_V[1:].tolist(), strict=True))
    expected = {
        "\n": TokenKind.NEWLINE,
        " ": TokenKind.SPACE,
        ".": TokenKind.PUNCTUATION,
        "1": TokenKind.DIGIT,
    }
    assert kinds == expected | {"A": TokenKind.UPPER, "a": TokenKind.LETTER, "é": TokenKind.LETTER}
    ids = {c: int(chars.encode(c)[0]) for c in "Aa"}
    assert token_traits(chars).folded_V[ids["A"]] == ids["a"]
    traits = token_traits(fit_tokenizer("byte", ["x"]))
    assert traits.kinds_V[0] == TokenKind.BOUNDARY
    assert len(traits.kinds_V) == 257


def test_damaged_arrays_are_refused():
    model, _ = text_model(verse(30))
    good = model.state_dict()
    slots = good["slots"].clone()
    slots[slots != 0] |= 0xFFFFF << 17
    lists = slots.clone()
    lists[lists != 0] |= 1 << 16
    damages = {
        "rank_V": torch.tensor(0, dtype=torch.int32),
        "kinds_V": torch.tensor(0, dtype=torch.uint8),
        "left_V": good["left_V"] + 1,
        "folded_V": good["folded_V"] + 1000,
        "slots": slots,
        "lists": torch.full_like(good["lists"], -1),
        "counters": torch.full_like(good["counters"], 1 << 40),
        "match_table": good["match_table"] + (1 << 30),
        "position": good["position"] - 5,
        "weights": good["weights"][:-1],
        "by_node": torch.zeros(()),
        "by_order": good["by_order"][:, :3].contiguous(),
        "history": good["history"] + 1000,
        "cells": good["cells"].double(),
    }
    more = [("slots", lists), ("rank_V", torch.zeros_like(good["rank_V"])), ("counters", torch.tensor(0))]
    for name, damaged in [*damages.items(), *more]:
        other = ContextMixing(ContextMixingConfig(), model.vocab_size, 0)
        with pytest.raises(RuntimeError):
            other.load_state_dict({**good, name: damaged})


def test_a_model_of_an_earlier_version_has_fewer_sets_of_weights():
    model, tokens = text_model(verse(20))
    state, n_sets = dict(model.state_dict()), 8
    rows = sum(memory.set_rows(model.vocab_size)[:n_sets])
    state |= {"weights": state["weights"][:rows]}
    state |= {name: state[name][:, :n_sets].contiguous() for name in ("by_node", "by_order")}
    earlier = ContextMixing(ContextMixingConfig(), model.vocab_size, 0)
    earlier.load_state_dict(state)
    with torch.no_grad():
        model.weights[rows:] = 0
        model.by_node[:, n_sets:] = model.by_order[:, n_sets:] = 0
    starts = np.zeros(1, np.int64)
    nats = [one.score(tokens, starts, "frozen") for one in (model, earlier)]
    np.testing.assert_allclose(*nats, atol=1e-6)


def test_rows_can_only_be_continued_one_at_a_time():
    model = lines_model()
    tokens = torch.ones(2, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="can't be continued"):
        model.count_batch(Batch(tokens, tokens, continues=True))


def test_without_a_compiler_python_reads(monkeypatch):
    expected, tokens = text_model(verse(3))
    monkeypatch.setattr(
        "makemore.models.context_mixing.model.LIBRARY",
        dataclasses.replace(LIBRARY, source=LIBRARY.source.with_name("none.c")),
    )
    monkeypatch.setattr(native, "failures", {})
    model, _ = text_model(verse(3))
    assert isinstance(model.engine, PlainEngine)
    assert native.failures
    scores = [m.score(tokens, np.array([0])) for m in (model, expected)]
    np.testing.assert_allclose(*scores, atol=2e-4)


def test_a_gradient_learning_rate_does_not_apply() -> None:
    one = np.zeros(1, np.int64)
    split = Split("val", np.array([1]), one, one + 1, one + 1)
    with pytest.raises(UserError, match=r"model\.adaptive_lr"):
        make_reader(ContextMixing(ContextMixingConfig(), 5, 0), lambda: split, DynamicSettings(lr=0.1))
