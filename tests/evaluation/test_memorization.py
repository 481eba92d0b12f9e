"""Copy lengths, distinct n-grams and verbatim lines against their definitions."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from makemore.errors import UserError
from makemore.evaluation import memorization as module
from makemore.evaluation.memorization import (
    distinct_share,
    longest_copies,
    memorisation,
    sample_memorization,
    suffix_array,
)
from makemore.runs.run import load
from makemore.sampling.text import SampleRequest, sample
from makemore.training.request import TrainRequest
from makemore.training.train import train


def naive_longest_copy(text: str, other: str) -> int:
    length = 0
    for i in range(len(other)):
        while i + length < len(other) and other[i : i + length + 1] in text:
            length += 1
    return length


AB_TEXTS = st.text("ab\n", max_size=60)


@given(text=AB_TEXTS, others=st.lists(AB_TEXTS, min_size=1, max_size=4))
def test_longest_copies(text, others):
    assert longest_copies(text, others).tolist() == [naive_longest_copy(text, other) for other in others]


@given(text=st.text(min_size=1, max_size=40), other=st.text(max_size=40))
def test_longest_copies_of_any_characters(text, other):
    assert longest_copies(text, [other]).tolist() == [naive_longest_copy(text, other)]


def test_longest_copies_of_real_text(shakespeare_file):
    text = shakespeare_file.read_text(encoding="utf-8")
    others = [text[90_000:90_300], text[10_000:10_120] + "qqq" + text[50_000:50_077], ""]
    assert longest_copies(text[:80_000], others).tolist() == [
        naive_longest_copy(text[:80_000], others[0]),
        120,
        0,
    ]


def test_copy_length_is_capped(monkeypatch):
    monkeypatch.setattr(module, "MAX_COPY_LENGTH", 100)
    text = "".join(random.Random(0).choices("abc", k=2000))
    assert longest_copies(text, [text[5:900], text[7:57]]).tolist() == [100, 50]


@given(codes=st.lists(st.integers(0, 3), min_size=1, max_size=80))
def test_suffix_array(codes):
    expected = sorted(range(len(codes)), key=lambda i: codes[i:])
    # Like the callers, end with a unique code, which makes all suffixes different.
    codes = [code + 1 for code in codes]
    assert suffix_array(np.array([*codes, 0]))[1:].tolist() == expected


def test_distinct_share():
    assert distinct_share(["abab", "b"], 1) == 2 / 5
    assert distinct_share(["abab", "b"], 2) == 2 / 3
    assert distinct_share([["to", "be", "to", "be"]], 2) == 2 / 3
    assert distinct_share(["a"], 4) == 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("memorisation")
    rng = random.Random(5)
    words = ["".join(rng.choices("bdklaei", k=rng.randint(2, 5))) for _ in range(400)]
    (path / "words.txt").write_text("\n".join(words), encoding="utf-8")
    sentences = [" ".join(rng.choices(words, k=6)) + "." for _ in range(400)]
    (path / "prose.txt").write_text(" ".join(sentences), encoding="utf-8")
    train(TrainRequest(input=str(path / "words.txt"), model="count", out=path / "lines"))
    train(TrainRequest(input=str(path / "prose.txt"), model="count", out=path / "text"))
    return path


def test_memorisation_of_lines(folder):
    run = load(folder / "lines")
    documents = run.documents()
    known = documents.all("train")[:3]
    report = memorisation(run, [*known, known[0], "zzz"])
    assert report.samples.texts == 5
    assert report.samples.verbatim == 4 / 5
    assert report.samples.repeated == pytest.approx(1 / 5)
    assert report.samples.copied_mean is None
    val_lines = documents.all("val")[:5]
    assert report.held_out is not None
    assert report.held_out.verbatim == sum(line in documents.all("train") for line in val_lines) / 5


def test_memorisation_of_text(folder):
    run = load(folder / "text")
    train_text, val_text = (run.documents().all(name)[0] for name in ("train", "val"))
    samples = [train_text[100:180], "zz" + train_text[50:70] + "zz", "zzz"]
    report = memorisation(run, samples)
    assert report.samples.verbatim is None
    assert report.samples.copied_max == 80
    assert report.samples.copied_mean == pytest.approx((80 + 20 + 0) / 3, abs=1)
    assert report.searched == len(train_text)
    assert report.held_out is not None
    assert report.held_out.texts == 3
    assert 0 < report.held_out.copied_max <= naive_longest_copy(train_text, val_text)


def test_held_out_pieces_have_the_lengths_of_the_samples(folder):
    run = load(folder / "text")
    val = run.documents().all("val")[0]
    pieces = module._cut_pieces(val, ["x" * 30, "x" * 7, "x" * 50])
    assert [len(piece) for piece in pieces] == [30, 7, 50]
    assert all(piece in val for piece in pieces)
    assert module._cut_pieces("abc", ["x" * 2, "x" * 2]) == ["ab"]
    assert module._cut_pieces("", ["x"]) == []


def test_report_covers_the_requested_samples(folder):
    lines = load(folder / "lines")
    request = SampleRequest(n=30, seed=3)
    assert sample_memorization(lines, [request]) == memorisation(lines, list(sample(lines, request)))
    text = load(folder / "text")
    prompt = text.documents().all("train")[0][:200]
    request = SampleRequest(n=2, prompt=prompt, max_new_tokens=20, seed=3)
    report = sample_memorization(text, [request])
    # The prompt is not counted.
    assert report == memorisation(text, [s.removeprefix(prompt) for s in sample(text, request)])
    assert report.samples.copied_max <= 20


def test_lines_need_no_source_text(folder, tmp_path):
    train(TrainRequest(input=str(folder / "words.txt"), model="count", out=tmp_path / "run"))
    run = load(tmp_path / "run")
    known = run.documents().all("train")[0]
    (folder / "words.txt").rename(tmp_path / "gone.txt")
    report = memorisation(run, [known, "zzz"])
    assert report.samples.verbatim == 0.5
    assert report.held_out is None


def test_no_samples_is_an_error(folder):
    with pytest.raises(UserError, match="no samples"):
        memorisation(load(folder / "lines"), [])
