"""Faults reported from daily use: files, names and commands; comments describe the reports."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest

from makemore.runs.run import load
from makemore.runs.verification import check_run
from tests.cli.conftest import call, train, words
from tests.cli.conftest import refused as refused
from tests.cli.conftest import trained_runs as trained_runs
from tests.cli.conftest import work as work


# Two runs of one command whose weights have different checksums, so that nobody can reproduce a result.
@pytest.mark.parametrize("model", ["mlp", "count"])
def test_equal_runs_have_equal_weight_files(work, model):
    for out in ("first", "second"):
        train("words.txt", "-m", model, "--seed", "5", "--steps", "4", "--out", out)
    assert (work / "first/model.safetensors").read_bytes() == (work / "second/model.safetensors").read_bytes()
    train("words.txt", "-m", model, "--steps", "5", "--seed", "6", "--out", "third")
    for name in ("first", "second", "third"):
        assert check_run(name) == []


def test_weights_are_still_tied_to_their_run(work, refused):
    for out, seed in (("first", 5), ("second", 6)):
        train("words.txt", "-m", "mlp", "--seed", seed, "--steps", "4", "--out", out)
    weights = work / "first/model.safetensors"
    original = weights.read_bytes()
    weights.write_bytes((work / "second/model.safetensors").read_bytes())
    assert "belongs to another run" in refused("sample", "first")
    weights.write_bytes(original)
    record = work / "first/weights.json"
    record.write_bytes((work / "second/weights.json").read_bytes())
    assert "belongs to another run" in refused("sample", "first")
    record.unlink()
    assert "weights.json is missing" in refused("sample", "first")
    assert any("weights.json is missing" in problem for problem in check_run("first"))


def test_an_interruption_between_checksum_and_weights_is_harmless(work):
    run = load("lines", "cpu")
    weights = work / "lines/model.safetensors"
    before = weights.read_bytes()
    run.folder.write_model({"x": run.model.state_dict()["first"]}, run.config.run_id)
    weights.write_bytes(before)
    assert call("sample", "lines").status == 0


# Runs that are only found by the path of their folder, although train chose the folder itself.
def test_a_run_is_found_by_its_name_in_checkpoints(work, monkeypatch):
    train("words.txt", "-m", "count")
    name = "words-count"
    arguments = {"sample": ["-n", "2"], "eval": ["--no-report"], "score": ["--text", "bada"]}
    for command, options in arguments.items():
        result = call(command, name, *options)
        assert result.status == 0, result.err
    assert call("check", name).status == 0
    assert call("compare", name, "lines").status == 0
    assert call("mix", name, "lines", "--out", "mixed").status == 0
    assert call("export", name, "--format", "arpa").status == 0
    assert (work / "checkpoints/words-count.arpa").is_file()
    train("prose.txt", "-m", "count", "--out", name)  # a path comes before a name
    assert load(name, "cpu").mode == "text"


def test_a_text_to_score_may_be_given_directly(work, refused, monkeypatch):
    (work / "some.txt").write_text("bada\nkila\n", encoding="utf-8")
    expected = json.loads(call("score", "lines", "some.txt", "--json").out)["bits_per_byte"]
    given = call("score", "lines", "--text", "bada\nkila\n", "--json")
    assert json.loads(given.out)["bits_per_byte"] == expected
    for against in ([], ["--against", "lines"]):
        stdin = io.TextIOWrapper(io.BytesIO(b"bada\r\nkila\r\n"))
        monkeypatch.setattr(sys, "stdin", stdin)
        assert json.loads(call("score", "lines", "-", *against, "--json").out)["bits_per_byte"] == expected
    assert "give a text to score" in refused("score", "lines")
    assert "give FILE or --text, not both" in refused("score", "lines", "some.txt", "--text", "bada")


# Which of twenty folders was the good one?
def test_runs_are_listed_best_first(work):
    train("words.txt", "-m", "bigram", "--steps", "2", "--out", "checkpoints/worse")
    train("words.txt", "-m", "count", "--out", "checkpoints/grid/better")
    train("prose.txt", "-m", "count", "--out", "checkpoints/prose")
    train("words.txt", "-m", "bigram", "--steps", "2", "--out", "checkpoints/broken")
    (work / "checkpoints/broken/result.json").write_text("{}", encoding="utf-8")
    rows = json.loads(call("runs", "--json").out)["runs"]
    assert [row["run"].replace("\\", "/") for row in rows if not row["problem"]] == [
        "checkpoints/prose",
        "checkpoints/grid/better",
        "checkpoints/worse",
    ]
    assert [row["model"] for row in rows if row["problem"]] == ["bigram"]
    plain = call("runs")
    assert plain.status == 0
    assert "grid/better" in plain.out
    assert "damaged" in plain.out
    assert "no runs in nowhere" in call("runs", "nowhere").err


def test_token_ids_can_be_printed(work):
    ids = json.loads(call("tokenize", "words.txt", "-n", "12", "--json").out)["ids"]
    assert len(ids) == 12
    assert call("tokenize", "words.txt", "-n", "12", "--ids").out == " ".join(map(str, ids)) + "\n"


# A name from the list of models is then refused as unknown.
def test_every_listed_model_can_be_looked_up():
    listed = json.loads(call("models", "--json").out)
    for row in [*listed["models"], *listed["to_read"]]:
        assert call("models", row["name"]).status == 0, row
        assert json.loads(call("models", row["name"], "--json").out)["model"] == row["name"]
    assert "makemore/micrograd.py" in call("models", "micrograd").out
    assert "micrograd is to be read, not trained" in call("train", "-m", "micrograd").err


# A seed that is rounded on its way through a float (llama.cpp#561, partofthething/ace#4: seeds ignored).
@pytest.mark.parametrize("seed", [2**53 + 1, 2**63 - 1])
def test_large_seeds_are_kept_exactly(work, seed):
    train("words.txt", "-m", "bigram", "--steps", 2, "--set", f"train.seed={seed}", "--out", "seeded")
    assert load("seeded").config.train.seed == seed
    train("words.txt", "-m", "bigram", "--steps", 3, "--seed", seed, "--out", "seeded", "--resume")


@pytest.mark.parametrize("command", [("sample", "lines"), ("gradcheck",), ("train", "words.txt")])
@pytest.mark.parametrize("seed", [-1, 2**63, 2**64])
def test_seeds_out_of_range_are_refused_everywhere(refused, command, seed):
    assert "must be" in refused(*command, "--seed", seed)


# A settings file saved by Windows' editor (gpt-2-simple#263: a byte-order mark before JSON).
def test_a_settings_file_may_begin_with_a_byte_order_mark(work):
    Path("bom.toml").write_bytes(b"\xef\xbb\xbf[train]\r\nlr = 0.25\r\n")
    train("words.txt", "-m", "bigram", "--steps", 2, "--config", "bom.toml", "--out", "bom")
    assert load("bom").config.train.optimizer.lr == 0.25


# Byte tokens shown as replacement characters (text-generation-inference#131).
def test_probabilities_of_byte_tokens_can_be_told_apart(work):
    Path("emoji.txt").write_text("👍👎🙂" * 50, encoding="utf-8")
    train("emoji.txt", "-m", "count", "-t", "byte", "--out", "bytes")
    shown = json.loads(call("sample", "bytes", "-n", 1, "--show-probs", "--max-new-tokens", 8, "--json").out)
    assert "\ufffd" not in json.dumps(shown, ensure_ascii=False)
    assert "\\xf0" in re.findall(r'"token": "(.*?)"', json.dumps(shown).replace(r"\\", "\\"))


# File names of the greatest length (datasets#2924).
def test_a_text_with_a_very_long_name(work):
    long = "n" * 120
    Path(f"{long}.txt").write_text(words(40), encoding="utf-8")
    train(f"{long}.txt", "-m", "count", "--out", "long-named-text")
    assert "long-named-text " in call("runs", ".").out
    Path(f"{'n' * 251}.txt").write_text(words(40), encoding="utf-8")
    result = call("train", f"{'n' * 251}.txt", "-m", "count")
    assert result.status == 2
    assert "give a shorter name with --out" in result.err
