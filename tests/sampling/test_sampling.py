"""Token sampling against its definitions, and incremental decoding against recomputation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from makemore.errors import UserError
from makemore.models import MODELS
from makemore.models.base import LanguageModel, MixtureModel
from makemore.models.count import Count
from makemore.models.mixture import Mixture, MixtureConfig
from makemore.models.rnn import LSTMConfig
from makemore.models.smoothing import CountConfig
from makemore.models.transformer import Transformer, TransformerConfig
from makemore.sampling import RandomStreams, SampleParams, beam_search, distribution, generate, sample_tokens
from makemore.sampling.beam import length_factor
from makemore.sampling.decoder import make_decoder
from makemore.sampling.decoders import fast_decoder
from makemore.types import Batch
from tests.conformance.fixtures import VOCAB, documents, nonzero_model

GREEDY = SampleParams(greedy=True)


def logits(rows: int = 3, vocab: int = 7) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, vocab)).astype(np.float32)


def softmax(z: np.ndarray) -> np.ndarray:
    return torch.from_numpy(z).double().softmax(-1).numpy()


def decode(model: LanguageModel, context: list[int], n: int, params: SampleParams, **kwargs) -> list[int]:
    return [int(ids[0]) for ids in generate(model, np.array([context]), n, params, **kwargs)]


def small_transformer(style: str = "modern", **settings) -> Transformer:
    torch.manual_seed(0)
    config = {"block_size": 8, "n_layer": 2, "n_embd": 32, "style": style, **settings}
    model = Transformer(TransformerConfig(**config), VOCAB, 0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


class TestDistribution:
    def test_is_the_softmax(self):
        np.testing.assert_allclose(distribution(logits(), SampleParams()), softmax(logits()), rtol=1e-12)

    def test_temperature_divides_logits(self):
        p = distribution(logits(), SampleParams(temperature=0.5))
        np.testing.assert_allclose(p, softmax(logits().astype(np.float64) / 0.5), rtol=1e-12)

    @pytest.mark.parametrize("k", [1, 3, 7, 50])
    def test_top_k_keeps_the_k_likeliest(self, k):
        p = distribution(logits(), SampleParams(top_k=k))
        for row, z in zip(p, logits(), strict=True):
            assert set(np.flatnonzero(row)) == set(np.argsort(-z)[:k])
        np.testing.assert_allclose(p.sum(-1), 1)

    def test_top_p_keeps_the_smallest_set_with_that_mass(self):
        p = distribution(logits(), SampleParams(top_p=0.6))
        for row, full in zip(p, softmax(logits()), strict=True):
            order = np.argsort(-full)
            count = int((full[order].cumsum() < 0.6).sum()) + 1
            assert set(np.flatnonzero(row)) == set(order[:count])
            np.testing.assert_allclose(row[order[:count]], full[order[:count]] / full[order[:count]].sum())

    def test_min_p_drops_tokens_far_below_the_likeliest(self):
        full = softmax(logits())
        p = distribution(logits(), SampleParams(min_p=0.3))
        assert np.array_equal(p > 0, full >= 0.3 * full.max(-1, keepdims=True))

    def test_input_is_not_modified(self):
        z = logits().astype(np.float64)
        distribution(z, SampleParams(0.5, top_k=3, top_p=0.5, min_p=0.1))
        assert np.array_equal(z, logits().astype(np.float64))


class TestSampleTokens:
    def test_greedy_and_temperature_zero_take_the_likeliest(self):
        for params in (GREEDY, SampleParams(temperature=0.0), SampleParams(top_k=1)):
            picked = sample_tokens(logits(), params, np.array([0.1, 0.5, 0.99]))
            assert picked.tolist() == logits().argmax(-1).tolist()

    def test_sample_frequencies_match_the_distribution(self):
        params = SampleParams(temperature=1.3, top_p=0.9)
        p = distribution(logits(1), params)[0]
        n = 20000
        samples = sample_tokens(np.repeat(logits(1), n, axis=0), params, (np.arange(n) + 0.5) / n)
        np.testing.assert_allclose(np.bincount(samples, minlength=7) / n, p, atol=2 / n)
        assert p[samples].min() > 0

    def test_impossible_tokens_are_never_sampled(self):
        z = np.array([-math.inf, 0.0, -math.inf, 0.0, -math.inf])
        u = np.array([0.0, 0.25, 0.5, 0.75, 1 - 2**-53])
        assert set(sample_tokens(np.tile(z, (5, 1)), SampleParams(), u).tolist()) == {1, 3}

    @pytest.mark.parametrize("vocab", [2, 66, 999])
    def test_largest_number_below_one_stays_in_the_vocabulary(self, vocab):
        z = logits(200, vocab)
        z[:, -1] = -np.inf
        assert sample_tokens(z, SampleParams(), np.full(200, 1 - 2**-53)).max() < vocab - 1

    @pytest.mark.parametrize(
        "settings",
        [
            {"temperature": -1.0},
            {"temperature": math.nan},
            {"top_k": 0},
            {"top_p": 0.0},
            {"top_p": 2.0},
            {"min_p": -0.1},
        ],
    )
    def test_invalid_values_are_refused(self, settings):
        with pytest.raises(UserError, match="must be"):
            SampleParams(**settings)

    def test_random_stream_is_independent_of_the_batch(self):
        many, one = RandomStreams(5, range(4)), RandomStreams(5, range(2, 3))
        for _ in range(300):  # longer than one block
            assert many.next()[2] == one.next()[0]
        many.select_rows(np.array([2]))
        assert many.next()[0] == one.next()[0]


class TestGreedy:
    @pytest.mark.parametrize("name", list(MODELS))
    def test_stateful_decoding_matches_recomputation(self, name):
        model = nonzero_model(name)
        ids = decode(model, [0, 3, 1], 120, GREEDY)
        n_checked = len(ids) if model.supports_streaming else model.max_len - 3
        context = torch.tensor([[0, 3, 1, *ids[:n_checked]]])
        with torch.no_grad():
            rows = model(context)[0][0, 2:-1].double()
        for token, row in zip(ids[:n_checked], rows, strict=True):
            assert row[token] >= row.max() - 1e-4  # allow either token of a near tie

    @pytest.mark.parametrize("name", [*MODELS, "gpt2"])
    def test_fast_decoder_matches_plain_forward(self, name):
        model = small_transformer("gpt2") if name == "gpt2" else nonzero_model(name)
        assert decode(model, [0, 3, 1], 300, GREEDY) == decode(model, [0, 3, 1], 300, GREEDY, fast=False)

    @pytest.mark.parametrize("document_ends", ["nonempty", "never"])
    @pytest.mark.parametrize("name", [*MODELS, "gpt2"])
    def test_fast_decoder_rules_out_the_boundary_as_forward_does(self, name, document_ends):
        model = small_transformer("gpt2") if name == "gpt2" else nonzero_model(name)
        model.set_document_ends(document_ends)
        ids = np.array([[0, 3], [4, 0], [2, 2]])
        rows = []
        for fast in (True, False):
            decoder = make_decoder(model, ids[:, :1], 3, fast)
            rows.append([z.copy() for z in (decoder.start(), decoder.step(ids[:, 1]))])
        np.testing.assert_allclose(softmax(np.array(rows[0])), softmax(np.array(rows[1])), atol=1e-6)


class TestFastDecoders:
    def test_changed_weights_are_used(self):
        model = small_transformer(block_size=40)
        fast_decoder(model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
        self.assert_follows_forward(model)

    def test_transformer_without_a_compiler_has_no_fast_decoder(self, no_compiler):
        assert fast_decoder(small_transformer(block_size=40)) is None

    def test_count_samples_are_the_same_without_a_compiler(self, request):
        model = nonzero_model("count")
        assert type(fast_decoder(model)).__name__ == "CompiledCountDecoder"
        prompt, samples = np.array([[0, 2, 1]]), range(40)
        compiled = list(generate(model, prompt, 300, SampleParams(), samples=samples))
        request.getfixturevalue("no_compiler")
        assert type(fast_decoder(model)).__name__ == "CountDecoder"
        np.testing.assert_array_equal(
            compiled, list(generate(model, prompt, 300, SampleParams(), samples=samples))
        )

    @pytest.mark.parametrize("name", [n for n in MODELS if not issubclass(MODELS.get(n), MixtureModel)])
    def test_logits_match_forward(self, name):
        self.assert_follows_forward(nonzero_model(name))

    @pytest.mark.parametrize(
        ("name", "settings"),
        [
            ("transformer", {"style": "gpt2"}),
            ("transformer", {"conv": 1}),
            ("transformer", {"conv": 2, "n_head": 1, "n_layer": 2}),
            ("rnn", {"n_layer": 2}),
            ("gru", {"n_layer": 2}),
            ("lstm", {"n_layer": 2}),
            ("wavenet", {"style": "gated", "block_size": 16}),
            ("mlp", {"n_layer": 3}),
            ("mlp", {"block_size": 1}),
            ("bow", {"block_size": 1}),
            ("batchnorm-mlp", {"n_layer": 2}),
        ],
    )
    def test_logits_match_forward_in_other_settings(self, name, settings):
        torch.manual_seed(1)
        kind = MODELS.get(name)
        model = kind(kind.Config(**settings), VOCAB, 0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.15)
            model.train()
            model(documents(16, 12)[:, :-1])
        self.assert_follows_forward(model.eval())

    @torch.no_grad()
    def assert_follows_forward(self, model: LanguageModel) -> None:
        """Compare step by step, with boundaries in mid-row and rows reordered or dropped."""
        tokens = documents(3, 40, seed=3)[:, :-1]
        if model.supports_packing:
            tokens[1, 20] = tokens[2, 3] = tokens[0, 30] = tokens[1, 7] = 0
        _, state = model(tokens[:, :7], model.init_state(3, 40))
        fast = fast_decoder(model)
        assert fast is not None
        fast.load(tuple(part.clone() for part in state))
        for t in range(7, 40):
            expected, state = model(tokens[:, t : t + 1], state)
            torch.testing.assert_close(
                torch.from_numpy(fast.step(tokens[:, t].numpy())), expected[:, -1], atol=1e-4, rtol=0
            )
            if t in (15, 25):
                rows = torch.tensor([2, 0, 1] if t == 15 else [0, 2])
                fast.select_rows(rows.numpy())
                state, tokens = tuple(part[rows] for part in state), tokens[rows]

    def test_count_without_backoff_has_no_fast_decoder(self):
        kind = MODELS.get("count")
        assert fast_decoder(kind(kind.Config(order=2, smoothing="additive"), VOCAB, 0)) is None

    def test_count_samples_follow_the_distribution(self):
        model = nonzero_model("count")
        fast = fast_decoder(model)
        context = documents(1, 9, seed=1)[:, :-1]
        with torch.no_grad():
            expected, state = model(context, model.init_state(1, 9))
        n = 50_000
        fast.load(tuple(part.repeat(n, 1) for part in state))
        ids = fast.sample((np.arange(n) + 0.5) / n)
        frequencies = np.bincount(ids, minlength=VOCAB) / n
        np.testing.assert_allclose(frequencies, softmax(expected[0, -1:].numpy())[0], atol=20 / n)
        # The decoder has already consumed the sampled tokens.
        with torch.no_grad():
            logits, _ = model(torch.from_numpy(ids[:400:50, None]), tuple(p.repeat(8, 1) for p in state))
        rows = np.arange(0, 400, 50)
        fast.select_rows(rows)
        probs = [fast.trie.distribution(int(node)) for node in fast.nodes]
        np.testing.assert_allclose(probs, softmax(logits[:, -1].numpy()), atol=1e-6)


class TestBeyondTheContext:
    @pytest.mark.parametrize("conv", [1, 4])
    @pytest.mark.parametrize("fast", [True, False])
    @torch.no_grad()
    def test_rolled_cache_attends_to_the_last_tokens(self, conv, fast):
        """Compare with one masked call over the whole text, in a model with a longer context."""
        model = small_transformer(conv=conv)
        long_model = small_transformer(conv=conv, block_size=64)
        long_model.load_state_dict(model.state_dict())
        ids = torch.randint(1, VOCAB, (2, 60), generator=torch.Generator().manual_seed(4))
        decoder = make_decoder(model, ids[:, :3].numpy(), 60, fast)
        out = [decoder.start(), *(decoder.step(ids[:, t].numpy()) for t in range(3, 60))]
        pos = long_model._locate(ids, None)
        start, n_cached = torch.zeros(60, dtype=torch.int64), 0
        for t in range(60):
            if n_cached == 8:
                n_cached = 4
            n_cached += 1
            start[t] = t + 1 - n_cached
        key = torch.arange(60)
        mask = torch.zeros(60, 60).masked_fill((key < start[:, None]) | (key > key[:, None]), -math.inf)
        x = torch.nn.functional.rms_norm(long_model.embedding(ids), (32,), eps=1e-6)
        pos = type(pos)(mask[None, None], pos.rotary, None, pos.doc_position_BT, pos.doc_start_BT)
        for block in long_model.blocks:
            x, _ = block(x, pos, None)
        expected = long_model.head(long_model.norm(x))[:, 2:]
        torch.testing.assert_close(torch.from_numpy(np.stack(out, axis=1)), expected, atol=2e-4, rtol=1e-4)

    @pytest.mark.parametrize("fast", [True, False])
    @torch.no_grad()
    def test_learned_positions_recompute_the_last_half(self, fast):
        model = small_transformer("gpt2")
        ids = torch.randint(1, VOCAB, (2, 40), generator=torch.Generator().manual_seed(4))
        decoder = make_decoder(model, ids[:, :20].numpy(), 40, fast)
        out = [decoder.start(), *(decoder.step(ids[:, t].numpy()) for t in range(20, 40))]
        n_context = 8  # a prompt longer than the context fills it
        for t, row in enumerate(out, start=20):
            expected = model(ids[:, t - n_context : t])[0][:, -1]
            torch.testing.assert_close(torch.from_numpy(row.copy()), expected, atol=1e-4, rtol=1e-4)
            n_context = 4 if n_context == 8 else n_context + 1

    @pytest.mark.parametrize("style", ["modern", "gpt2"])
    @pytest.mark.parametrize("size", [1, 2, 3, 8])
    def test_generation_continues_past_the_context(self, style, size):
        model = small_transformer(style, block_size=size)
        prompt = np.random.default_rng(0).integers(1, VOCAB, (2, 20))
        out = np.stack(list(generate(model, prompt, 50, SampleParams(), seed=1)))
        assert out.shape == (50, 2)
        assert np.array_equal(
            out, np.stack(list(generate(model, prompt, 50, SampleParams(), seed=1, fast=False)))
        )

    @pytest.mark.parametrize("fast", [True, False])
    def test_memory_is_bounded(self, fast):
        model = small_transformer()
        decoder = make_decoder(model, np.ones((1, 3), np.int64), 10_000, fast)
        decoder.start()
        for _ in range(100):
            decoder.step(np.ones(1, np.int64))
        assert len(decoder.recent) <= 8
        cache = decoder.fast.keys[0] if fast else decoder.state[2]
        assert max(cache.shape) == 8


def is_blas_batch_invariant() -> bool:
    """Whether each row of a matrix product is the same for any number of rows from two up."""
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((64, 128), (128, 96)))
    return all(np.array_equal(x[:rows] @ w, (x @ w)[:rows]) for rows in (2, 3, 5, 37))


class TestRows:
    @pytest.mark.parametrize("name", [*MODELS, "gpt2"])
    def test_rows_are_bitwise_equal_in_any_batch(self, name):
        model = small_transformer("gpt2") if name == "gpt2" else nonzero_model(name)
        ids = np.random.default_rng(1).integers(1, VOCAB, (20, 37))

        def decode_rows(rows: list[int]) -> np.ndarray:
            decoder = make_decoder(model, np.array([[0, 3, 1]]), 40)
            decoder.start()
            decoder.select_rows(np.zeros(len(rows), np.int64))
            return np.stack([decoder.step(step[rows]).copy() for step in ids])

        batched = decode_rows(list(range(37)))
        for rows in ([0], [36], [5, 2], list(range(3, 20))):
            subset = decode_rows(rows)
            np.testing.assert_allclose(subset, batched[:, rows], atol=1e-4)
            if is_blas_batch_invariant():
                assert np.array_equal(subset, batched[:, rows])

    @pytest.mark.parametrize("name", ["lstm", "count", "transformer", "mixture"])
    def test_finished_rows_leave_the_batch(self, name):
        model = nonzero_model(name)
        prompt = np.zeros((6, 1), np.int64)
        stop = np.array([0, 4])
        steps = np.stack(list(generate(model, prompt, 200, SampleParams(), stop, seed=2)))
        lengths = set()
        for row in range(6):
            ids = steps[:, row]
            is_stop = np.isin(ids, stop)
            end = int(np.argmax(is_stop)) if is_stop.any() else len(ids)
            lengths.add(end)
            assert not np.isin(ids[:end], [-1, 0, 4]).any()
            assert (ids[end + 1 :] == -1).all()
            alone = decode(
                model, [0], 200, SampleParams(), stop_ids=stop, seed=2, samples=range(row, row + 1)
            )
            assert alone == ids[: end + 1].tolist()
        assert len(lengths) > 1

    def test_callback_can_end_rows(self):
        steps = list(
            generate(
                nonzero_model("mlp"), np.zeros((3, 1), np.int64), 50, SampleParams(), ends=lambda r, _: r != 1
            )
        )
        assert len(steps) == 50
        assert all((s[[0, 2]] == -1).all() and s[1] >= 0 for s in steps[1:])


def test_mixture_members_keep_separate_contexts():
    """An unbounded member keeps its full context when a limited one drops old tokens."""
    members = (LSTMConfig(n_hidden=16), TransformerConfig(block_size=8, n_embd=32))
    torch.manual_seed(0)
    model = Mixture(MixtureConfig(members=members), VOCAB, 0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.eval()
    ids = np.random.default_rng(0).integers(1, VOCAB, (2, 40))
    mixture, *members = (make_decoder(m, ids[:, :1], 40) for m in (model, *model.members))
    mixture_logits = [mixture.start(), *(mixture.step(ids[:, t]) for t in range(1, 40))]
    member_logits = [[p.start(), *(p.step(ids[:, t]).copy() for t in range(1, 40))] for p in members]
    expected = np.log(
        sum(w * softmax(np.stack(z)) for w, z in zip(model.weights.numpy(), member_logits, strict=True))
    )
    np.testing.assert_allclose(np.stack(mixture_logits), expected, atol=1e-5)


class TestBeams:
    def brute_force(self, model: LanguageModel, n: int, penalty: float) -> list[tuple[float, list[int]]]:
        """Score every text of up to ``n`` tokens; token 0 ends a text."""
        scored = []
        for length in range(1, n + 1):
            for ids in itertools.product(range(1, VOCAB), repeat=length - 1):
                endings = [[0]] if length < n else [[t] for t in range(VOCAB)]
                with torch.no_grad():
                    logp = model(torch.tensor([[0, *ids]]))[0][0].double().log_softmax(-1)
                head = sum(float(logp[i, t]) for i, t in enumerate(ids))
                for (t,) in endings:
                    score = (head + float(logp[-1, t])) / length_factor(length, penalty)
                    scored.append((score, [*ids, *([t] if t else [])]))
        return sorted(scored, reverse=True)

    @pytest.mark.parametrize("penalty", [0.0, 0.6, 1.5])
    def test_wide_search_finds_the_best_texts(self, penalty):
        model = nonzero_model("bigram")
        best = self.brute_force(model, 3, penalty)[:5]
        beams = beam_search(
            model, np.array([0]), n=3, width=2000, length_penalty=penalty, stop_ids=np.array([0])
        )[:5]
        np.testing.assert_allclose([h.score for h in beams], [score for score, _ in best], rtol=1e-5)
        assert [h.ids for h in beams] == [ids for _, ids in best]

    @pytest.mark.parametrize("name", ["transformer", "lstm", "count", "mixture"])
    def test_single_beam_is_greedy(self, name):
        model = nonzero_model(name)
        (beam,) = beam_search(model, np.array([0, 2]), 30, 1)
        assert beam.ids == decode(model, [0, 2], 30, GREEDY)

    def test_log_prob_matches_forward(self):
        model = nonzero_model("lstm")
        for h in beam_search(model, np.array([0]), 12, 4):
            with torch.no_grad():
                logp = model(torch.tensor([[0, *h.ids[:-1]]]))[0][0].double().log_softmax(-1)
            total = sum(float(logp[i, t]) for i, t in enumerate(h.ids))
            assert h.log_prob == pytest.approx(total, abs=1e-4)

    def test_finished_beams_are_not_duplicated(self):
        model = Count(CountConfig(order=3, smoothing="additive", alpha=0.0), VOCAB, 0)
        word = torch.tensor([[0, 1, 2, 3]])
        model.count_batch(Batch(word, torch.tensor([[1, 2, 3, 0]])))
        model.finish()
        (only,) = beam_search(model, np.array([0]), 10, 4, stop_ids=np.array([0]))
        assert only.ids == [1, 2, 3]
        assert only.log_prob == pytest.approx(0.0, abs=1e-6)

    def test_larger_exponent_favours_longer_texts(self):
        model = nonzero_model("bigram")
        lengths = [
            len(
                beam_search(
                    model, np.array([0]), n=12, width=8, length_penalty=penalty, stop_ids=np.array([0])
                )[0].ids
            )
            for penalty in (0.0, 1.0, 3.0)
        ]
        assert lengths == sorted(lengths)
        assert lengths[0] < lengths[-1]
