"""Recognition of training lines from the hashes in a run, without its text."""

from __future__ import annotations

import random

import pytest

from makemore.errors import UserError
from makemore.evaluation.evaluate import evaluate
from makemore.runs.run import load
from makemore.sampling.novel import sample_novel, train_lines
from makemore.sampling.text import SampleRequest, sample
from makemore.training.mixing.mix import mix
from makemore.training.request import TrainRequest
from makemore.training.train import train


@pytest.fixture
def folder(tmp_path):
    """A directory with a text and a run on it that often repeats training lines."""
    rng = random.Random(5)
    words = ["".join(rng.choices("bdae", k=rng.randint(1, 4))) + rng.choice("é漢") for _ in range(300)]
    (tmp_path / "words.txt").write_text("\n".join(words), encoding="utf-8")
    train(TrainRequest(input=str(tmp_path / "words.txt"), model="count", out=tmp_path / "run"))
    return tmp_path


def move_text(folder):
    (folder / "words.txt").rename(folder / "elsewhere.txt")
    return set(load(folder / "run").documents(folder / "elsewhere.txt").all("train"))


def test_run_recognises_exactly_its_training_lines(folder):
    documents = load(folder / "run").documents()
    known = move_text(folder)
    seen = train_lines(load(folder / "run"))
    assert all(line in seen for line in known)
    for line in [*documents.all("val"), *documents.all("test"), "", "zz", *(line + "b" for line in known)]:
        assert (line in seen) == (line in known)


def test_novel_samples_are_the_samples_without_training_lines(folder):
    known = move_text(folder)
    run = load(folder / "run")
    request = SampleRequest(n=40, seed=2)
    novel = list(sample_novel(run, request))
    assert len(novel) == 40
    samples = list(sample(run, SampleRequest(n=400, seed=2)))
    assert novel == [line for line in samples if line not in known][:40]
    assert novel != samples[:40]


def test_unseen_lines_are_scored_without_the_training_text(folder):
    known = sorted(move_text(folder))
    (folder / "new.txt").write_text("\n".join([*known[:5], "zzé", "bbbbbb漢"]), encoding="utf-8")
    scored = evaluate(load(folder / "run"), folder / "new.txt")
    assert scored.not_in_train is not None
    assert scored.not_in_train.chars == len("zzé\nbbbbbb漢\n")


def test_prompt_is_part_of_the_line(folder):
    known = move_text(folder)
    novel = list(sample_novel(load(folder / "run"), SampleRequest(n=10, prompt="b", seed=2)))
    assert all(line.startswith("b") and line not in known for line in novel)


def test_mixture_recognises_training_lines(folder):
    train(
        TrainRequest(
            input=str(folder / "words.txt"), model="bigram", out=folder / "other", train={"steps": 3}
        )
    )
    mix([folder / "run", folder / "other"], folder / "mixed")
    known = move_text(folder)
    novel = list(sample_novel(load(folder / "mixed"), SampleRequest(n=20, seed=2)))
    assert len(novel) == 20
    assert not known & set(novel)


def test_run_without_hashes_reads_its_text(folder, monkeypatch):
    monkeypatch.setattr("makemore.runs.training_lines.MAX_HASHED_LINES", 100)
    train(TrainRequest(input=str(folder / "words.txt"), model="count", out=folder / "run", overwrite=True))
    assert not (folder / "run" / "seen.safetensors").exists()
    run = load(folder / "run")
    novel = list(sample_novel(run, SampleRequest(n=20, seed=2)))
    assert not set(novel) & move_text(folder)
    with pytest.raises(UserError, match="is missing"):
        list(sample_novel(run, SampleRequest(n=20, seed=2)))


def test_damaged_hashes_are_refused(folder):
    path = folder / "run" / "seen.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        next(sample_novel(load(folder / "run"), SampleRequest(n=20, seed=2)))


def test_overwriting_replaces_the_hashes(folder):
    (folder / "words.txt").write_text("kala\nbidi\ndale\n" * 30, encoding="utf-8")
    text, lines = str(folder / "words.txt"), {"mode": "lines"}
    train(TrainRequest(input=text, model="count", corpus=lines, out=folder / "run", overwrite=True))
    assert set(move_text(folder)) == {"kala", "bidi", "dale"}
    assert len(train_lines(load(folder / "run")).sorted_U) == 3
