"""Generated text: complete characters, stop strings, long prompts, streaming, batches and threads."""

from __future__ import annotations

import itertools
from threading import Event
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from makemore import load
from makemore.errors import UserError
from makemore.sampling import SampleParams
from makemore.sampling import decoder as decoding
from makemore.sampling import text as generation
from makemore.sampling.decoders import fast_decoder
from makemore.sampling.text import SampleRequest, TextStream, context_ids, sample, stream_text
from makemore.sampling.workers import n_sampling_threads, run_in_threads
from makemore.tokenizers import fit_tokenizer
from makemore.training.request import TrainRequest
from makemore.training.train import train

TEXT = "naïve café 漢字 👩‍🌾 d'été — garçon. "


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("generation")
    (path / "prose.txt").write_text(TEXT * 60, encoding="utf-8")
    (path / "lines.txt").write_text("kafé\nbidé\n漢字\nnaïve\nkala\n" * 30, encoding="utf-8")
    for name, file, model, tokenizer in (
        ("bytes", "prose.txt", "count", "byte"),
        ("pieces", "prose.txt", "count", "bpe:280"),
        ("sentencepiece", "prose.txt", "count", "spm:270"),
        ("chars", "prose.txt", "count", "char"),
        ("lines", "lines.txt", "count", "byte"),
        ("lstm", "prose.txt", "lstm", "char"),
        ("transformer", "prose.txt", "transformer", "char"),
    ):
        settings = ("train.steps=3", "train.compile=no", "train.dtype=float32")
        sizes = {"lstm": ("model.n_hidden=16",), "transformer": ("model.n_embd=16", "model.block_size=32")}
        settings = () if model == "count" else (*settings, *sizes[model])
        train(
            TrainRequest(
                input=str(path / file), model=model, tokenizer=tokenizer, out=path / name, settings=settings
            )
        )
    return path


def make_stream(tokenizer: str, stop: str | None = None, mode: str = "text") -> TextStream:
    return TextStream(SimpleNamespace(tokenizer=fit_tokenizer(tokenizer, [TEXT]), mode=mode), stop)


def push_text(stream: TextStream, text: str) -> list[str]:
    pieces = []
    for token in stream.run.tokenizer.encode(text).tolist():
        pieces.append(stream.push(token))
        if stream.ended:
            break
    return [*pieces, stream.flush()]


class TestTextStream:
    @pytest.mark.parametrize("tokenizer", ["byte", "char", "bpe:280", "spm:270"])
    def test_pieces_are_complete_characters(self, tokenizer):
        pieces = push_text(make_stream(tokenizer), TEXT * 2)
        assert "".join(pieces) == TEXT * 2
        assert "\ufffd" not in "".join(pieces)

    def test_character_is_emitted_with_its_last_byte(self):
        assert push_text(make_stream("byte"), "é漢") == ["", "é", "", "", "漢", ""]

    def test_invalid_utf8_becomes_a_replacement_character(self):
        stream = make_stream("byte")
        # A byte's id is its value plus one; id 0 is the boundary.
        assert [stream.push(1 + byte) for byte in b"a\xe6\xbc"] == ["a", "", ""]
        assert stream.flush() == "\ufffd"
        assert stream.text == "a\ufffd"

    @given(text=st.text("ab é", max_size=30), stop=st.text("ab é", min_size=1, max_size=4))
    def test_ends_at_the_first_stop_string(self, text, stop):
        stream = TextStream(SimpleNamespace(tokenizer=fit_tokenizer("byte", ["a"]), mode="text"), stop)
        pieces = push_text(stream, text)
        assert "".join(pieces) == stream.text == text.partition(stop)[0]
        assert stream.ended == (stop in text)

    def test_holds_back_only_a_possible_start_of_the_stop_string(self):
        stream = make_stream("char", stop="café")
        assert push_text(stream, "naca caf. ")[:10] == ["n", "a", "", "", "ca ", "", "", "", "caf.", " "]

    def test_newline_ends_a_line(self):
        stream = make_stream("byte", mode="lines")
        assert "".join(push_text(stream, "na\nve")) == "na"
        assert stream.ended


class TestStreamText:
    @pytest.mark.parametrize("name", ["bytes", "pieces", "sentencepiece", "chars", "lstm", "transformer"])
    @pytest.mark.parametrize("stop", [None, "é", "zzz"])
    def test_pieces_join_to_the_sample(self, folder, name, stop):
        run = load(folder / name)
        request = SampleRequest(n=1, prompt="na", max_new_tokens=80, stop=stop, seed=4)
        pieces = list(stream_text(run, request))
        assert all(pieces)
        assert ["na" + "".join(pieces)] == list(sample(run, request))

    def test_streamed_lines_equal_the_sample(self, folder):
        run = load(folder / "lines")
        for seed in range(5):
            request = SampleRequest(n=1, seed=seed)
            assert ["".join(stream_text(run, request))] == list(sample(run, request))

    def test_pieces_are_streamed_as_generated(self, folder):
        endless = stream_text(load(folder / "transformer"), SampleRequest(n=1, max_new_tokens=10**9, seed=1))
        assert len("".join(itertools.islice(endless, 200))) >= 200


class TestGenerate:
    def test_same_seed_gives_the_same_text(self, folder):
        run = load(folder / "chars")
        arguments = {"max_new_tokens": 60, "temperature": 0.9, "top_k": 8, "top_p": 0.95, "min_p": 0.01}
        text = "".join(run.generate("na", seed=5, **arguments))
        assert text == "".join(run.generate("na", seed=5, **arguments))
        request = SampleRequest(
            n=1, prompt="na", max_new_tokens=60, params=SampleParams(0.9, 8, 0.95, 0.01), seed=5
        )
        assert ["na" + text] == list(sample(run, request))
        assert len({"".join(run.generate("na", max_new_tokens=60)) for _ in range(4)}) > 1

    def test_greedy_and_stop(self, folder):
        run = load(folder / "chars")
        text = "".join(run.generate("na", greedy=True, max_new_tokens=200))
        assert "gar" in text
        assert "".join(run.generate("na", greedy=True, stop="gar")) == text.partition("gar")[0]

    def test_invalid_arguments_are_refused_immediately(self, folder):
        run = load(folder / "chars")
        with pytest.raises(UserError, match="not in the vocabulary"):
            run.generate("Z")
        with pytest.raises(UserError, match="top_k=0"):
            run.generate(top_k=0)


class TestPrompts:
    @pytest.mark.parametrize("name", ["lstm", "transformer", "chars"])
    def test_prompt_may_have_any_length(self, folder, name, monkeypatch):
        run = load(folder / name)
        request = SampleRequest(n=3, prompt=TEXT * 20, max_new_tokens=30, seed=1)
        texts = list(sample(run, request))
        assert all(text.startswith(request.prompt) for text in texts)
        # Reading the prompt in small chunks changes nothing.
        monkeypatch.setattr(decoding, "PROMPT_CHUNK", 7)
        assert list(sample(run, request)) == texts

    @pytest.mark.parametrize("name", ["transformer", "chars"])
    def test_long_prompt_is_cut_to_the_context(self, folder, name):
        run = load(folder / name)
        limit = run.model.max_len
        long, end = (
            SampleRequest(n=2, prompt=(TEXT * 20)[-n:], max_new_tokens=30, seed=1)
            for n in (limit + 50, limit)
        )
        tails = [[text[-30:] for text in sample(run, request)] for request in (long, end)]
        assert tails[0] == tails[1]

    def test_empty_prompt_continues_the_training_text(self, folder):
        run = load(folder / "chars")
        train_text = run.documents().all("train")[0]
        assert run.tokenizer.decode(context_ids(run, SampleRequest())) == train_text[-256:]


class TestBatches:
    def test_batch_size_does_not_change_the_text(self, folder, monkeypatch):
        run = load(folder / "transformer")
        request = SampleRequest(n=7, prompt="na", max_new_tokens=90, seed=2)
        texts = list(sample(run, request))
        monkeypatch.setattr(generation, "MAX_ROWS", 3)
        assert list(sample(run, request)) == texts
        for i, text in enumerate(texts):
            assert list(sample(run, SampleRequest(n=1, prompt="na", max_new_tokens=90, seed=2), i)) == [text]

    def test_batch_size_fits_the_memory_limit(self, folder, monkeypatch):
        run = load(folder / "transformer")
        size = sum(part.nbytes for part in run.model.init_state(1, 90))
        monkeypatch.setattr(generation, "MAX_STATE_BYTES", 5 * size)
        assert generation.sample_batch_size(run.model, 90) == 5
        monkeypatch.setattr(generation, "MAX_STATE_BYTES", 1)
        assert generation.sample_batch_size(run.model, 90) == 1

    def test_batch_size_fits_the_cache_if_that_is_faster(self, folder, monkeypatch):
        run = load(folder / "transformer")
        size = sum(part.nbytes for part in run.model.init_state(1, 90))
        monkeypatch.setattr(type(fast_decoder(run.model)), "cache_bytes", 40 * size)
        assert generation.sample_batch_size(run.model, 90) == 40 * n_sampling_threads(run.model, 1024)
        monkeypatch.setattr(type(fast_decoder(run.model)), "cache_bytes", None)
        assert generation.sample_batch_size(run.model, 90) == 1024


@pytest.mark.parametrize("name", ["chars", "transformer"])
def test_beams_are_sorted_by_probability(folder, name):
    run = load(folder / name)
    texts = list(sample(run, SampleRequest(n=3, prompt="na", max_new_tokens=12, beam=6)))
    assert len(set(texts)) == 3
    assert all(text.startswith("na") for text in texts)
    logp = [_log_prob(run, text) for text in texts]
    assert logp == sorted(logp, reverse=True)


def _log_prob(run, text: str) -> float:
    ids = run.tokenizer.encode(text).astype(np.int64)
    decoder = decoding.make_decoder(run.model, ids[None, :2], len(ids))
    z, total = decoder.start(), 0.0
    for token in ids[2:]:
        total += float(z[0, token] - np.log(np.exp(z[0]).sum()))
        z = decoder.step(np.array([token]))
    return total


class TestThreads:
    @pytest.fixture
    def three_threads(self, monkeypatch):
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)

    @pytest.mark.parametrize("name", ["lstm", "transformer"])
    @pytest.mark.parametrize("stop", [None, "é"])
    def test_threads_give_the_same_samples_in_the_same_order(self, folder, three_threads, name, stop):
        run = load(folder / name)
        assert n_sampling_threads(run.model, 50) == 3
        batched = list(sample(run, SampleRequest(n=50, prompt="na", max_new_tokens=20, stop=stop, seed=4)))
        one_by_one = [
            text
            for i in range(50)
            for text in sample(run, SampleRequest(n=1, prompt="na", max_new_tokens=20, stop=stop, seed=4), i)
        ]
        assert batched == one_by_one

    def test_few_samples_use_one_thread(self, folder, three_threads):
        assert n_sampling_threads(load(folder / "lstm").model, 20) == 1

    def test_error_in_one_thread_stops_all(self):
        def work(samples: range, stop: Event) -> list[int]:
            if samples.start == 0:
                raise UserError("no")
            assert stop.wait(60)
            return []

        with pytest.raises(UserError, match="no"):
            run_in_threads(work, range(32), 2)
