"""Precedence of settings, and which of them a resumed run may change."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from makemore import load
from makemore.runs.schema import RunConfig
from makemore.settings.base import setting_names
from tests.cli.conftest import call, train

DOCS = Path(__file__).parents[2] / "docs"


def test_flags_and_set_override_the_config_file(work):
    (work / "c.toml").write_text("[model]\nn_hidden = 8\nn_embd = 4\n[train]\nsteps = 9\n", encoding="utf-8")
    options = ["--config", "c.toml", "--steps", "2", "--set", "model.n_embd=3", "--out", "r"]
    train("words.txt", "--model", "mlp", *options)
    config = load("r").config
    assert config.model.n_hidden == 8
    assert config.model.n_embd == 3
    assert config.train.steps == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "mlp"], "model is bigram, not mlp"),
        (["--set", "train.lr=9"], "train.optimizer.lr was"),
        (["--seed", "5"], "train.seed was 0, not 5"),
        (["--set", "model.weight_penalty=1"], "model.weight_penalty was"),
        (["--mode", "text"], "corpus.mode was lines, not text"),
        (["--split", "0.6,0.2,0.2"], "corpus.split was auto"),
    ],
)
def test_resume_refuses_changed_settings(refused, work, options, message):
    train("words.txt", "--model", "bigram", "--steps", "3", "--out", "r")
    command = ["train", "words.txt", "--out", "r", "--resume"]
    command += [] if "--model" in options else ["--model", "bigram"]
    assert message in refused(*command, *options)


def test_resume_with_more_steps_continues(work):
    train("words.txt", "--model", "bigram", "--steps", "3", "--out", "r")
    result = train("words.txt", "--model", "bigram", "--out", "r", "--resume", "--json", "--steps", "7")
    assert json.loads(result.out)["steps"] == 7


@pytest.mark.parametrize("model", ["bigram", "auto"])
def test_resuming_without_an_input_reads_the_text_of_the_run(work, refused, model):
    train("words.txt", "--model", model, "--steps", "3", "--out", "r")
    result = train("--out", "r", "--resume", "--json", "--steps", "7")
    assert json.loads(result.out)["steps"] >= 7
    (work / "words.txt").unlink()
    assert "words.txt' is missing" in refused("train", "--out", "r", "--resume", "--steps", "9")


def test_model_larger_than_memory_is_refused(refused):
    sizes = ["--set", "model.n_hidden=1000000000", "--set", "model.n_embd=100000"]
    assert "doesn't fit in memory" in refused("train", "words.txt", "--model", "mlp", *sizes)


@pytest.mark.parametrize("model", ["transformer", "batchnorm-mlp"])
def test_streams_loader_needs_a_model_with_carried_state(refused, model):
    message = refused("train", "prose.txt", "--model", model, "--set", "train.loader=streams", "--out", "r")
    assert f"{model} keeps no state" in message


def test_zero_stride_is_refused(refused):
    assert "--stride 0" in refused("eval", "lines", "--stride", "0")


def test_cost_of_a_large_vocabulary_is_reported_before_training(work, monkeypatch):
    monkeypatch.setattr("makemore.training.planning.LARGE_VOCABULARY", 5)
    monkeypatch.setattr("makemore.training.planning.BYTES_PER_PARAMETER", 10**9)
    monkeypatch.setattr("makemore.training.planning.total_memory_gb", lambda device: 1e12)
    notes = train("prose.txt", "--model", "bigram", "--steps", "2", "--out", "r").err
    assert "parameters for" in notes
    assert "to train" in notes


def test_groups_and_short_names_mean_the_same(work):
    (work / "long.toml").write_text(
        'tokenizer = "byte"\n[model]\nname = "mlp"\nn_hidden = 8\n'
        '[train]\nsteps = 2\n[train.optimizer]\nname = "sgd"\nlr = 0.5\n[train.data]\nbatch_tokens = 64\n',
        encoding="utf-8",
    )
    (work / "short.toml").write_text(
        'tokenizer = "byte"\n[model]\nname = "mlp"\nn_hidden = 8\n'
        '[train]\nsteps = 2\noptimizer = "sgd"\nlearning_rate = 0.5\nbatch_tokens = 64\n',
        encoding="utf-8",
    )
    for name in ("long", "short"):
        train("words.txt", "--config", f"{name}.toml", "--out", name)
    configs = [load(name).config for name in ("long", "short")]
    assert configs[0].train == configs[1].train
    assert configs[0].model == configs[1].model
    assert (configs[0].model.name, configs[0].tokenizer) == ("mlp", "byte")
    assert (configs[0].train.optimizer.name, configs[0].train.optimizer.lr) == ("sgd", 0.5)


def test_a_group_keeps_what_an_earlier_source_set(work):
    (work / "c.toml").write_text('[train]\noptimizer = "sgd"\nlr = 0.5\n', encoding="utf-8")
    options = ["--config", "c.toml", "--set", "train.optimizer.beta1=0.5", "--steps", "2", "--out", "r"]
    train("words.txt", "--model", "mlp", *options)
    optimizer = load("r").config.train.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.beta1) == ("sgd", 0.5, 0.5)


def test_the_schema_accepts_what_train_accepts(work):
    schema = json.loads(call("models", "--json-schema").out)
    models = schema["properties"]["model"]["discriminator"]["mapping"]
    assert {"transformer", "lstm", "count"} <= set(models)
    assert "mixture" not in models
    lstm = schema["$defs"][models["lstm"].rpartition("/")[2]]["properties"]
    assert lstm["n_hidden"]["minimum"] == 1
    assert lstm["n_hidden"]["description"] == "width of the hidden vector"
    optimizer = schema["$defs"]["OptimizerConfig"]["properties"]
    assert (optimizer["beta1"]["exclusiveMaximum"], optimizer["beta1"]["default"]) == (1, 0.9)
    jsonschema = pytest.importorskip("jsonschema")
    example = (DOCS / "training.md").read_text(encoding="utf-8").split("```toml\n")[1].split("```")[0]
    for text in (example, "[train.optimizer]\nlr = 0.1", '[model]\nname = "count"\norder = 3'):
        jsonschema.validate(tomllib.loads(text), schema)
    for text in ("[train]\nmax_time = -5", "[model]\nn_hidden = 3", '[model]\nname = "count"\nn_hidden = 3'):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(tomllib.loads(text), schema)


def test_every_setting_is_listed_with_its_bounds(work):
    lines = call("models", "mlp").out.splitlines()
    assert "model.dropout=0.0  (≥ 0, < 1)  dropout probability of hidden units" in lines
    assert "train.steps=none  (≥ 1)  number of optimizer steps" in lines
    listed = {row["name"] for row in json.loads(call("models", "mlp", "--json").out)["settings"]}
    run_config = RunConfig.for_model("mlp")
    assert listed == {*setting_names(run_config)} - {"model.name"}


def test_a_plain_value_names_the_model_and_aliases_work_in_groups(work):
    (work / "c.toml").write_text(
        'model = "mlp"\n[train]\nsteps = 2\n[train.optimizer]\nlearning_rate = 0.5\n'
        '[train.schedule]\nname = "cosine"\n',
        encoding="utf-8",
    )
    train("words.txt", "--config", "c.toml", "--out", "r")
    config = load("r").config
    assert (config.model.name, config.train.optimizer.lr, config.train.schedule.shape) == (
        "mlp",
        0.5,
        "cosine",
    )
    train("words.txt", "--set", "model=bigram", "--steps", "2", "--out", "b")
    assert load("b").config.model.name == "bigram"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nlr = 0.1\nlearning_rate = 0.2\n", "c.toml: train.lr and train.learning_rate are the same"),
        (
            "[train]\nlr = 1\n[train.optimizer]\nlr = 2\n",
            "c.toml: train.lr and train.optimizer.lr are the same",
        ),
        ("[train]\nlrr = 0.1\n", "c.toml: unknown setting 'train.lrr'"),
        ("[train]\nsteps = -1\n", "c.toml: train.steps=-1: must be 1 or more"),
    ],
)
def test_an_error_in_a_file_names_it(refused, work, text, message):
    (work / "c.toml").write_text(text, encoding="utf-8")
    assert message in refused("train", "words.txt", "--model", "bigram", "--config", "c.toml")


def test_a_list_is_read_like_values_separated_by_commas(work):
    text = "[train]\nsteps = 2\nmilestones = [0.5, 0.75]\n[corpus]\nsplit = [0.5, 0.25, 0.25]\n"
    (work / "c.toml").write_text(text, encoding="utf-8")
    train("words.txt", "--model", "bigram", "--config", "c.toml", "--out", "r")
    config = json.loads((work / "r" / "config.json").read_text(encoding="utf-8"))
    assert config["train"]["schedule"]["milestones"] == "0.5,0.75"
    assert config["corpus"]["split"] == "0.5,0.25,0.25"
