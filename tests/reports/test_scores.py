"""Faults reported with misleading scores; comments describe the reports."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from makemore.evaluation.evaluate import evaluate
from makemore.runs.run import load
from tests.cli.conftest import call, train
from tests.cli.conftest import refused as refused
from tests.cli.conftest import trained_runs as trained_runs
from tests.cli.conftest import work as work


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def parse_strictly(text: str) -> object:
    return json.loads(text, parse_constant=refuse)


def strict_files(folder: Path) -> None:
    """Parse every JSON file of a run, line by line where it holds lines."""
    for path in folder.rglob("*.json*"):
        text = path.read_text(encoding="utf-8")
        for part in text.splitlines() if path.suffix == ".jsonl" else [text]:
            parse_strictly(part)


# JSON written with NaN or Infinity, which strict parsers refuse (nanoGPT-style logs read by a dashboard).
def test_files_and_output_are_strict_json_where_scores_are_infinite(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["smith", "dalton", "johnson", "baker", "miller", "clark", "wright", "mason", "cook", "hill"]
    Path("ten.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    smoothing = ["--set", "model.smoothing=additive", "--set", "model.alpha=0", "--set", "model.order=3"]
    result = train("ten.txt", "-m", "count", *smoothing, "--out", "counts", "--json")
    assert parse_strictly(result.out)["val"]["nll"] is None
    train("ten.txt", "-m", "bigram", "--steps", "3", "--out", "bigram")
    for run in ("counts", "bigram"):
        strict_files(Path(run))
        for command in (["eval", run], ["sample", run, "--report"], ["score", run, "ten.txt"]):
            parse_strictly(call(*command, "--json").out)
    parse_strictly(call("compare", "counts", "bigram", "--json").out)
    assert call("train", "ten.txt", "-m", "bigram", "--steps", "6", "--out", "bigram", "--resume").status == 0


# A perplexity of 74 digits, because characters outside the vocabulary had a loss but weren't counted.
def test_unknown_characters_count_as_tokens(work):
    (work / "known.txt").write_text("ba\n", encoding="utf-8")
    (work / "other.txt").write_text("baпривет\nдень\n", encoding="utf-8")
    run = load("lines", "cpu")
    known, score = evaluate(run, Path("known.txt")), evaluate(run, Path("other.txt"))
    assert (score.tokens, score.unknown_chars) == (4, 10)
    assert score.nll == pytest.approx(score.nats / 14)
    assert score.nll < 28  # 27.7 per unknown character
    assert score.perplexity == pytest.approx(math.exp(score.nll))
    assert score.bits_per_char == pytest.approx(score.nats / math.log(2) / 14)
    # The end of a line without a known character costs ln V.
    unknown = -10 * math.log(1e-6 / 1_114_112) + math.log(run.tokenizer.vocab_size)
    assert score.nats == pytest.approx(known.nats + unknown)


# Held-out text that is a copy of the training text (textgenrnn#175: "perfect" results on repeated lines).
def test_a_val_split_that_is_all_in_train_is_mentioned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("same.txt").write_text("the same line again\n" * 300, encoding="utf-8")
    result = train("same.txt", "-m", "count", "--mode", "lines", "--out", "run")
    assert "every document of val is in train" in result.err
    assert "every document of val is in train" in call("eval", "run", "--no-report").out
    assert json.loads(call("eval", "run", "--no-report", "--json").out)["all_in_train"] is True


def test_no_note_on_memory_if_val_is_partly_in_train(work):
    assert "every document of val is in train" not in call("eval", "lines", "--no-report").out


# A log that says 27 parameters and order 0 for a model with 119,029 counts of order 6.
def test_the_chosen_order_and_its_counts_are_printed(work):
    result = train("words.txt", "-m", "count", "--out", "again")
    model = load("again", "cpu").model
    assert f"{model.n_parameters():,} counts; order={model.order}" in result.err
    assert "order=0" not in result.err
    assert "parameters; order" not in result.err


def test_a_mixture_scored_on_val_says_so(work):
    train("words.txt", "-m", "bigram", "--steps", "5", "--out", "bigram")
    assert call("mix", "lines", "bigram", "--constant", "--out", "mixture").status == 0
    note = "weights were fitted on val"
    assert note in call("eval", "mixture", "--no-report").out
    assert note not in call("eval", "mixture", "--no-report", "--split", "test").out
    assert note in call("compare", "mixture", "lines").out
    assert note in call("compare", "mixture", "lines", "--csv").err
    assert note not in call("compare", "mixture", "lines", "--split", "test").out
    assert call("mix", "lines", "bigram", "--out", "gated").status == 0
    assert note not in call("eval", "gated", "--no-report").out


def test_notes_of_a_comparison_go_to_stderr_beside_csv_and_markdown(work):
    train("words.txt", "-m", "bigram", "--steps", "5", "--out", "bigram")
    for flag in ("--csv", "--markdown"):
        result = call("compare", "lines", "bigram", flag)
        assert "other seeds may change the order" in result.err
        assert "other seeds" not in result.out


# Blank lines among the samples of a model that never saw one.
@pytest.mark.parametrize(
    "lines",
    [
        ["smith", "dalton", "johnson", "baker", "miller", "clark", "wright", "mason", "cook", "hill"],
        [chr(0x4E00 + 7 * i) + chr(0x4E00 + 11 * i % 900) for i in range(150)],
    ],
    ids=["ten names", "CJK"],
)
@pytest.mark.parametrize("smoothing", ["kneser-ney", "additive", "recursive-additive"])
def test_count_draws_no_blank_lines(tmp_path, monkeypatch, lines, smoothing):
    monkeypatch.chdir(tmp_path)
    Path("lines.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = ["--set", f"model.smoothing={smoothing}"]
    train("lines.txt", "-m", "count", "--mode", "lines", *settings, "--out", "run")
    drawn = call("sample", "run", "-n", "2000", "--seed", "1").out.split("\n")[:-1]
    assert len(drawn) == 2000
    assert all(drawn)


def test_count_gives_the_end_of_running_text_no_probability(work):
    run = load("text", "cpu")
    logits, _ = run.model(torch.from_numpy(run.tokenizer.encode("bread and salt").astype("int64"))[None])
    assert (logits[..., 0] == -math.inf).all()
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(logits.shape[:2]))


def test_held_out_text_that_stands_in_train_is_mentioned(tmp_path: Path) -> None:
    """A perplexity near 1 on a text that repeats itself says nothing; duplicates between train and test of
    published corpora are reported again and again (Lee et al. 2022)."""
    rng = random.Random(5)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 8))) for _ in range(300)]
    paragraphs = [" ".join(rng.choices(words, k=60)) + ".\n\n" for _ in range(40)]
    text = "".join(paragraphs)
    copied = text[200:500]
    new = " ".join(rng.choices(words, k=30))
    (tmp_path / "text.txt").write_text(f"{text}{copied}{new}{text[:700]}{copied}{new}", encoding="utf-8")
    run = tmp_path / "run"
    assert call("train", tmp_path / "text.txt", "-m", "count", "--out", run).status == 0
    whole = call("eval", run, "--no-report")
    assert "of val occurs verbatim in train, in long passages" in whole.out
    # Counted by hand: every stretch of 100 characters of val that occurs in train.
    corpus = load(run).corpus()
    train, val = (corpus.tokenizer.decode(corpus.splits[name].tokens_N) for name in ("train", "val"))
    marked = [False] * len(val)
    for i in range(len(val) - 99):
        if val[i : i + 100] in train:
            marked[i : i + 100] = [True] * 100
    score = json.loads(call("eval", run, "--no-report", "--json").out)
    assert score["copied"] == pytest.approx(sum(marked) / len(marked))
    assert 0.01 < score["copied"] < 1
    (tmp_path / "other.txt").write_text(text, encoding="utf-8")
    assert call("train", tmp_path / "other.txt", "-m", "count", "--out", tmp_path / "other").status == 0
    assert "verbatim" not in call("eval", tmp_path / "other", "--no-report").out


@pytest.mark.parametrize("text", ["привет", "привет\n", "привет мир\nи снова"])
@pytest.mark.parametrize("run", ["lines", "text"])
def test_a_text_without_a_known_character_is_refused(work: Path, refused: Any, text: str, run: str) -> None:
    """Its perplexity would be a number of many digits."""
    Path("other.txt").write_text(text, encoding="utf-8")
    for command in ("eval", "score"):
        assert "no characters that" in refused(command, run, "other.txt")
