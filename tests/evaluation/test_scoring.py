"""The scoring protocol against separately written, naive scorers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from makemore.corpus.loader import OrderedLoader
from makemore.corpus.rows import Rows
from makemore.corpus.splits import encode_documents
from makemore.errors import UserError
from makemore.evaluation.distributions import log_probs, nats_of
from makemore.evaluation.scoring import (
    MAX_LOGITS_PER_CALL,
    UNKNOWN_CHAR_NATS,
    _row_groups,
    estimate_loss,
    fit_mixture_weights,
    mix_nats,
    score,
    token_nats,
)
from makemore.models import MODELS
from makemore.tokenizers.byte import ByteTokenizer
from makemore.tokenizers.char import CharTokenizer
from tests.conformance.fixtures import VOCAB, nonzero_model
from tests.models.test_count import Reference, histories

ALPHABET = CharTokenizer("abcdefghij")  # VOCAB tokens: ten characters and the boundary
NAMES = list(MODELS)


def words(n: int, max_length: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list("abcdefghij"), rng.integers(1, max_length + 1))) for _ in range(n)]


def naive_nats(model, ids: list[int], max_context: int | None = None) -> list[float]:
    """Nats per target, each from a fresh call on its full context or last ``max_context`` tokens."""
    nats = []
    context = [0]
    for target in ids:
        shown = context if max_context is None else context[-max_context:]
        with torch.no_grad():
            logits = model(torch.tensor([shown]))[0][0, -1].double()
        nats.append(float(F.cross_entropy(logits, torch.tensor(target))))
        context.append(target)
    return nats


@pytest.mark.parametrize("name", NAMES)
def test_each_line_is_scored_once_from_the_boundary(name):
    model = nonzero_model(name)
    lines = words(12, 9)
    split = encode_documents("val", [lines], "lines", ALPHABET)
    expected = [n for line in lines for n in naive_nats(model, [*ALPHABET.encode(line).tolist(), 0])]
    np.testing.assert_allclose(token_nats(model, split), expected, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in NAMES if MODELS.get(name).supports_streaming])
def test_streaming_models_score_text_with_full_context(name, monkeypatch):
    monkeypatch.setattr("makemore.evaluation.windows.STREAM_LENGTH", 32)  # many windows from a short text
    model = nonzero_model(name)
    split = encode_documents("val", [["".join(words(20, 9))]], "text", ALPHABET)
    expected = naive_nats(model, split.tokens_N.astype(int).tolist())
    np.testing.assert_allclose(token_nats(model, split), expected, atol=1e-4)


@pytest.mark.parametrize("mode", ["lines", "text"])
@pytest.mark.parametrize("name", NAMES)
def test_log_probabilities_in_order_are_those_of_the_score(name, mode, monkeypatch):
    monkeypatch.setattr("makemore.evaluation.windows.STREAM_LENGTH", 16)  # several pieces
    monkeypatch.setattr("makemore.evaluation.distributions.MAX_TOKENS_PER_CALL", 100)  # several groups
    model, texts = nonzero_model(name), words(20, 9)
    split = encode_documents("val", [texts if mode == "lines" else ["".join(texts)]], mode, ALPHABET)
    found = torch.cat(list(log_probs(model, split)))
    assert found.shape == (len(split.tokens_N), model.vocab_size)
    nats = nats_of(found, torch.from_numpy(split.tokens_N.astype(np.int64)))
    np.testing.assert_allclose(nats, token_nats(model, split), atol=1e-4)


def test_transformer_windows_at_stride_one_match_the_naive_loop():
    torch.manual_seed(0)
    kind = MODELS.get("transformer")
    model = kind(kind.Config(block_size=8, n_layer=2, n_embd=32), VOCAB, 0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    split = encode_documents("val", [["".join(words(12, 9))]], "text", ALPHABET)
    expected = naive_nats(model.eval(), split.tokens_N.astype(int).tolist(), max_context=8)
    np.testing.assert_allclose(token_nats(model, split, stride=1), expected, atol=1e-4)
    overlapping = token_nats(model, split)
    assert len(overlapping) == len(expected)
    assert not np.isnan(overlapping).any()
    np.testing.assert_allclose(overlapping[:8], expected[:8], atol=1e-4)


def test_totals_match_the_text():
    model = nonzero_model("bigram")
    lines = words(30, 9)
    split = encode_documents("val", [lines], "lines", ALPHABET)
    result = score(model, split, ALPHABET)
    size = sum(len(line) + 1 for line in lines)
    assert (result.tokens, result.chars, result.bytes) == (size, size, size)
    assert result.nats == pytest.approx(token_nats(model, split).sum(), rel=1e-12)
    low, high = result.ci95_bits_per_byte
    assert low < result.bits_per_byte < high


def test_uniform_byte_model_scores_eight_bits_per_byte():
    kind = MODELS.get("bigram")
    text = "naïve café, 文字 🙂" * 20
    tokenizer = ByteTokenizer()
    model = kind(kind.Config(), 256 + 1, 0)
    with torch.no_grad():
        model.W[:, 0] = -math.inf  # the boundary never follows in running text
    split = encode_documents("val", [[text]], "text", tokenizer)
    result = score(model, split, tokenizer)
    assert result.bits_per_byte == pytest.approx(8.0, abs=1e-6)
    assert (result.chars, result.bytes) == (len(text), len(text.encode()))


def test_uniform_character_model_scores_eight_bits_per_byte_too():
    """Each character has the probability of its bytes; the boundary gets the remainder."""
    kind = MODELS.get("bigram")
    text = "naïve café, 文字 🙂" * 600
    char_tokenizer, byte_tokenizer = CharTokenizer.fit([text]), ByteTokenizer()
    probs_V = 256.0 ** -char_tokenizer.token_bytes()
    probs_V[0] = 1 - probs_V[1:].sum()
    by_char = kind(kind.Config(), char_tokenizer.vocab_size, 0)
    by_byte = kind(kind.Config(), byte_tokenizer.vocab_size, 0)
    with torch.no_grad():
        by_char.W.copy_(torch.from_numpy(np.log(probs_V)).expand_as(by_char.W))
        by_byte.W[:, 0] = -math.inf
    results = [
        score(model, encode_documents("val", [[text]], "text", tokenizer), tokenizer)
        for model, tokenizer in ((by_char, char_tokenizer), (by_byte, byte_tokenizer))
    ]
    assert results[0].tokens < results[1].tokens
    for result in results:
        assert result.bits_per_byte == pytest.approx(8.0, abs=1e-6)
        np.testing.assert_allclose(result.unit_nats_U, results[1].unit_nats_U, rtol=1e-6)
        np.testing.assert_allclose(result.ci95_bits_per_byte, 8.0, rtol=1e-6)


@pytest.mark.parametrize("mode", ["lines", "text"])
def test_count_model_matches_a_dictionary_reference(mode):
    """Kneser-Ney smoothing over plain dictionaries, from the text to nats per token."""
    kind = MODELS.get("count")
    words_of = {"train": words(300, 9), "val": words(40, 9, seed=1)}
    documents = {name: lines if mode == "lines" else ["".join(lines)] for name, lines in words_of.items()}
    rows = {}
    for name, texts in documents.items():
        ids = [[*ALPHABET.encode(text).tolist(), *([0] if mode == "lines" else [])] for text in texts]
        rows[name] = [([0, *i[:-1]], i) for i in ids]
    config = kind.Config(order=4)
    reference = Reference(rows["train"], config, VOCAB)
    expected = [-math.log(reference.p(h, w)) for row in rows["val"] for h, w in histories(row, 4)]
    model = kind(config, VOCAB, 0)
    for batch in OrderedLoader(encode_documents("train", [documents["train"]], mode, ALPHABET), 0, 1000):
        model.count_batch(batch)
    model.finish()
    result = score(model, encode_documents("val", [documents["val"]], mode, ALPHABET), ALPHABET)
    assert result.nll == pytest.approx(np.mean(expected), abs=1e-6)
    assert result.tokens == len(expected)


@pytest.mark.parametrize("name", ["bigram", "mlp", "lstm", "transformer"])
def test_score_matches_torch_cross_entropy(name):
    model = nonzero_model(name)
    ids = ALPHABET.encode("abcdefghij").astype(np.int64)
    inputs, targets = torch.tensor([[0, *ids]]), torch.tensor([[*ids, 0]])
    with torch.no_grad():
        expected = F.cross_entropy(model(inputs)[0].flatten(0, 1), targets.flatten(), reduction="sum")
    result = score(model, encode_documents("val", [["abcdefghij"]], "lines", ALPHABET), ALPHABET)
    assert result.nats == pytest.approx(float(expected), rel=1e-6)


def test_unknown_characters_add_a_fixed_cost():
    model = nonzero_model("bigram")
    with_unknown = encode_documents("val", [["abc", "a?b!c"]], "lines", ALPHABET)
    without = encode_documents("val", [["abc", "abc"]], "lines", ALPHABET)
    a, b = (score(model, s, ALPHABET) for s in (with_unknown, without))
    assert a.nats == pytest.approx(b.nats + 2 * UNKNOWN_CHAR_NATS)
    assert (a.unknown_chars, a.chars) == (2, b.chars + 2)
    text_unknown = encode_documents("val", [["abca?b!c"]], "text", ALPHABET)
    text_known = encode_documents("val", [["abcabc"]], "text", ALPHABET)
    c, d = (score(model, s, ALPHABET) for s in (text_unknown, text_known))
    assert c.nats == pytest.approx(d.nats + 2 * UNKNOWN_CHAR_NATS)


def test_unseen_lines_are_scored_separately():
    model = nonzero_model("mlp")
    split = encode_documents("val", [["abc", "def", "gh"]], "lines", ALPHABET, seen={"def"})
    result = score(model, split, ALPHABET)
    unseen = encode_documents("val", [["abc", "gh"]], "lines", ALPHABET)
    assert result.not_in_train is not None
    assert result.not_in_train.nats == pytest.approx(score(model, unseen, ALPHABET).nats, rel=1e-5)
    assert result.not_in_train.tokens == 7


def test_nan_is_an_error_that_names_the_position():
    model = nonzero_model("bigram")
    with torch.no_grad():
        model.W[3] = math.nan
    split = encode_documents("val", [["ab", "abcd"]], "lines", ALPHABET)
    with pytest.raises(UserError, match="token 6 of val"):
        token_nats(model, split)


def test_impossible_targets_score_infinity_without_a_warning():
    kind = MODELS.get("count")
    model = kind(kind.Config(order=2, smoothing="additive", alpha=0.0), VOCAB, 0)
    for batch in OrderedLoader(encode_documents("train", [["ab", "abc"]], "lines", ALPHABET), 0, 100):
        model.count_batch(batch)
    model.finish()
    split = encode_documents("val", [["ab", "ba"]], "lines", ALPHABET)
    result = score(model, split, ALPHABET)
    assert result.nll == result.perplexity == math.inf


def test_training_estimate_is_close_to_the_score():
    for name in ("mlp", "transformer", "lstm"):
        model = nonzero_model(name)
        split = encode_documents("val", [words(400, 9)], "lines", ALPHABET)
        exact = score(model, split, ALPHABET).nll
        assert estimate_loss(model, split, 10**9) == pytest.approx(exact, rel=1e-4)
        assert estimate_loss(model, split, 1000) == pytest.approx(exact, rel=0.2)


def test_em_finds_the_maximum_likelihood_weights():
    rng = np.random.default_rng(0)
    nats = -np.log(rng.uniform(0.05, 0.9, (2, 500)))
    best = fit_mixture_weights(nats)
    grid = np.linspace(0.001, 0.999, 999)
    losses = [mix_nats(nats, np.array([w, 1 - w])).sum() for w in grid]
    assert best[0] == pytest.approx(grid[int(np.argmin(losses))], abs=2e-3)
    assert best.sum() == pytest.approx(1.0)


def test_mixture_scores_like_its_weighted_members():
    model = nonzero_model("mixture")
    with torch.no_grad():
        model.mixing.copy_(torch.tensor([0.3, 0.7]))
    split = encode_documents("val", [words(20, 9)], "lines", ALPHABET)
    members = np.stack([token_nats(member, split) for member in model.members])
    np.testing.assert_allclose(model.weights, [0.3, 0.7], rtol=1e-7)
    expected = -np.log(model.weights.numpy() @ np.exp(-members))
    np.testing.assert_allclose(token_nats(model, split), expected, rtol=1e-9)
    direct = naive_nats(model, [*split.tokens_N[: int(split.ends_D[0])].tolist()])
    np.testing.assert_allclose(expected[: len(direct)], direct, atol=1e-4)


def test_row_groups_stay_within_the_token_limit():
    lengths = np.array([3, 900, 2, 5, 5, 1])
    rows = Rows(np.zeros(6, np.int64), np.zeros(6, np.int64), lengths)
    groups = list(_row_groups(rows, MAX_LOGITS_PER_CALL // 20))  # 20 tokens per group
    assert sorted(np.concatenate(groups)) == list(range(6))
    assert [len(group) for group in groups] == [4, 1, 1]
    assert all(len(g) == 1 or lengths[g].max() * len(g) <= 20 for g in groups)
