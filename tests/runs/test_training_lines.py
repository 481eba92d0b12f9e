"""Only new lines, told from the run alone."""

from __future__ import annotations

import random

import pytest

from makemore.errors import UserError
from makemore.evaluation.evaluate import evaluate
from makemore.runs.run import load
from makemore.sampling.novel import sample_novel, train_lines
from makemore.sampling.text import SampleRequest, sample
from makemore.training.mix import mix
from makemore.training.request import TrainRequest
from makemore.training.train import train


@pytest.fixture
def folder(tmp_path):
    """A run that often recites, its text gone."""
    rng = random.Random(5)
    words = ["".join(rng.choices("bdae", k=rng.randint(1, 4))) + rng.choice("é漢") for _ in range(300)]
    (tmp_path / "words.txt").write_text("\n".join(words), encoding="utf-8")
    train(TrainRequest(str(tmp_path / "words.txt"), "count", out=tmp_path / "run"))
    return tmp_path


def gone(folder):
    (folder / "words.txt").rename(folder / "elsewhere.txt")
    return set(load(folder / "run").documents(folder / "elsewhere.txt").all("train"))


def test_the_run_knows_its_lines(folder):
    documents = load(folder / "run").documents()
    known = gone(folder)
    seen = train_lines(load(folder / "run"))
    assert all(line in seen for line in known)
    for line in [*documents.all("val"), *documents.all("test"), "", "zz", *(line + "b" for line in known)]:
        assert (line in seen) == (line in known)


def test_new_lines_are_the_samples_without_known_ones(folder):
    known = gone(folder)
    run = load(folder / "run")
    request = SampleRequest(40, seed=2)
    new = list(sample_novel(run, request))
    assert len(new) == 40
    drawn = list(sample(run, SampleRequest(400, seed=2)))
    assert new == [line for line in drawn if line not in known][:40]
    assert new != drawn[:40]


def test_another_file_s_unseen_lines_are_told_without_the_text(folder):
    known = sorted(gone(folder))
    (folder / "new.txt").write_text("\n".join([*known[:5], "zzé", "bbbbbb漢"]), encoding="utf-8")
    scored = evaluate(load(folder / "run"), folder / "new.txt")
    assert scored.unseen is not None
    assert scored.unseen.chars == len("zzé\nbbbbbb漢\n")


def test_prompts_count_as_part_of_the_line(folder):
    known = gone(folder)
    new = list(sample_novel(load(folder / "run"), SampleRequest(10, "b", seed=2)))
    assert all(line.startswith("b") and line not in known for line in new)


def test_a_mixture_knows_them_too(folder):
    train(TrainRequest(str(folder / "words.txt"), "bigram", out=folder / "other", train={"steps": 3}))
    mix([folder / "run", folder / "other"], folder / "mixed")
    known = gone(folder)
    new = list(sample_novel(load(folder / "mixed"), SampleRequest(20, seed=2)))
    assert len(new) == 20
    assert not known & set(new)


def test_a_run_without_hashes_asks_its_text(folder, monkeypatch):
    monkeypatch.setattr("makemore.runs.training_lines.MAX_HASHED_LINES", 100)
    train(TrainRequest(str(folder / "words.txt"), "count", out=folder / "run", overwrite=True))
    assert not (folder / "run" / "seen.safetensors").exists()
    run = load(folder / "run")
    new = list(sample_novel(run, SampleRequest(20, seed=2)))
    assert not set(new) & gone(folder)
    with pytest.raises(UserError, match="is missing"):
        list(sample_novel(run, SampleRequest(20, seed=2)))


def test_damage_is_noticed(folder):
    path = folder / "run" / "seen.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        next(sample_novel(load(folder / "run"), SampleRequest(20, seed=2)))


def test_overwriting_forgets_the_old_lines(folder):
    (folder / "words.txt").write_text("kala\nbidi\ndale\n" * 30, encoding="utf-8")
    train(TrainRequest(str(folder / "words.txt"), "count", out=folder / "run", overwrite=True))
    assert set(gone(folder)) == {"kala", "bidi", "dale"}
    assert len(train_lines(load(folder / "run")).sorted_U) == 3
