"""Model cards beside exports."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from makemore.errors import UserError
from makemore.interop.card import model_card
from makemore.interop.export import export
from makemore.runs.run import Run, load
from makemore.training.mixing.mix import mix
from makemore.training.request import TrainRequest
from makemore.training.train import train
from tests.comparison.test_compare import write_prose, write_words

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["lines", "text"])
def run(request, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp(request.param)
    write = write_words if request.param == "lines" else write_prose
    train(
        TrainRequest(
            input=str(write(folder / "poems.txt")),
            model="transformer",
            out=folder / "run",
            settings=("model.conv=1", "model.gate=false", "model.score_scale=1", "model.n_embd=32"),
            train={"steps": 5, "seed": 3},
        )
    )
    return load(folder / "run")


def rows(card: str) -> dict[str, str]:
    cells = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ")]
    return {row[0]: row[1] for row in cells if len(row) == 2}


def test_a_card_says_where_the_model_comes_from(run, tmp_path):
    path = export(run, "hf", tmp_path / "hf").path
    card = (path / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "**Licence:** not stated." in card
    values = rows(card)
    assert values["name"] == "poems"
    assert values["sha256 of train"] == run.config.text.digests["train"]
    assert values["train / val / test"] == ("80% / 10% / 10%" if run.mode == "lines" else "90% / 5% / 5%")
    assert values["tokens of val"] == f"{run.config.text.tokens['val']:,}"
    saved = run.folder.read_result()
    assert values["nats per token"] == f"{saved.val.nll:.4f}"
    assert values["bits per byte"].startswith(f"{saved.val.bits_per_byte:.4f}")
    assert (values["model.n_embd"], values["train.seed"], values["train.steps"]) == ("32", "3", "5")
    assert values["torch"] == run.config.versions["torch"]
    assert values["train.optimizer.name"] == "muon"
    assert values["train.optimizer.matrix_lr"] == str(run.config.train.optimizer.matrix_lr)
    assert ("identical lines in the same split" in values) == (run.mode == "lines")
    assert "The best weights were chosen on val." in card
    copies = "are lines of the training text" if run.mode == "lines" else "longest passage"
    assert copies in card
    assert card.count("None") == 0


def trained(folder: Path, path: Path, model: str, settings: tuple[str, ...] = (), **train_settings) -> Run:
    out = folder / f"{model}{len(settings)}"
    train(TrainRequest(input=str(path), model=model, out=out, settings=settings, train=train_settings))
    return load(out)


def card_of(run: Run) -> str:
    return model_card(run).decode()


def test_the_card_of_auto_lists_the_settings_of_its_members(tmp_path):
    path = write_words(tmp_path / "words.txt")
    auto = trained(tmp_path, path, "auto", steps=5, seed=3, device="cpu")
    card = card_of(auto)
    values = rows(card)
    transformer = auto.config.model.members[1]
    assert values["budget in steps"] == "5"
    assert values["transformer: model.n_layer"] == str(transformer.n_layer)
    assert values["transformer: model.n_embd"] == str(transformer.n_embd)
    assert values["transformer: model.block_size"] == str(transformer.block_size)
    assert (values["transformer: train.steps"], values["transformer: train.seed"]) == ("5", "3")
    counting = auto.config.mixed[0].run
    assert values[f"{counting}: model.name"] == counting
    assert not [name for name in values if name.startswith(f"{counting}: train.optimizer")]
    assert not [name for name in values if name.startswith("train.")]
    environment = auto.folder.member("transformer").read_config().environment
    assert (values["device"], values["threads"]) == ("cpu", str(environment.threads))
    assert "each half of val was scored by a gate fitted on the other half" in card
    assert "The best weights of transformer were chosen on val." in card
    assert "The best weights were" not in card


def test_a_budget_in_time_is_in_the_card_of_auto(tmp_path):
    auto = trained(tmp_path, write_words(tmp_path / "words.txt"), "auto", max_time=2.0)
    assert rows(card_of(auto))["budget in seconds"] == "2.0"
    auto.folder.write_requested({"train": {}})
    assert rows(card_of(auto))["budget in seconds"] == "120.0"  # the default
    auto.folder.write_requested({})  # a run of an earlier version
    assert "budget in" not in card_of(auto)


def test_the_card_of_a_mixture_says_what_was_fitted(tmp_path):
    path = write_words(tmp_path / "words.txt")
    trained(tmp_path, path, "bigram", steps=5)
    trained(tmp_path, path, "count")
    mix([tmp_path / "bigram0", tmp_path / "count0"], tmp_path / "mixed", gate=False)
    card = card_of(load(tmp_path / "mixed"))
    assert "The weights of the members were fitted on val, so the score is slightly optimistic." in card
    assert "The best weights of bigram were chosen on val." in card
    assert "The n-gram order of count was chosen on val, unless it was set." in card
    values = rows(card)
    assert values["bigram0: train.optimizer.name"] == "adamw"
    assert values["count0: model.smoothing"] == "kneser-ney"
    assert "device" not in values


@pytest.mark.parametrize("model", ["count", "context-mixing"])
def test_the_cards_of_counting_models_list_no_optimizer(model, tmp_path):
    run = trained(tmp_path, write_words(tmp_path / "words.txt"), model, max_time=60.0)
    card = card_of(run)
    values = rows(card)
    assert [name for name in values if name.startswith("train.")] == ["train.max_time"]
    assert ("The n-gram order was chosen on val, unless it was set." in card) == (model == "count")
    assert "best weights" not in card


def test_a_text_too_short_for_an_interval(tmp_path):
    path = write_words(tmp_path / "words.txt", n=60)
    card = card_of(trained(tmp_path, path, "bigram", steps=2))
    assert rows(card)["bits per byte"].endswith(" (too short for an interval)")


def test_an_infinite_loss_is_named(tmp_path):
    settings = ("model.smoothing=additive", "model.alpha=0", "model.order=8")
    values = rows(card_of(trained(tmp_path, write_words(tmp_path / "words.txt"), "count", settings)))
    assert (values["nats per token"], values["bits per byte"]) == ("infinite", "infinite")
    assert values["model.alpha"] == "0.0"


def test_copies_of_train_in_val_are_mentioned(tmp_path):
    passage = write_prose(tmp_path / "prose.txt").read_text(encoding="utf-8")[:2000]
    prose = tmp_path / "repeated.txt"
    prose.write_text(passage * 20, encoding="utf-8")
    card = card_of(trained(tmp_path, prose, "count"))
    assert "100% of val occurs verbatim in train, in long passages." in card
    few = write_words(tmp_path / "words.txt", n=20).read_text(encoding="utf-8").split()
    words = tmp_path / "few.txt"
    words.write_text("\n".join(random.Random(0).choices(few, k=400)) + "\n", encoding="utf-8")
    assert "Every document of val is in train: the score measures memory." in card_of(
        trained(tmp_path, words, "bigram", steps=2)
    )


def test_without_the_training_text_copies_are_not_measured(run, tmp_path, monkeypatch):
    def missing(*_):
        raise UserError("poems.txt is missing; restore it")

    monkeypatch.setattr("makemore.interop.card.sample_memorization", missing)
    path = export(run, "hf", tmp_path / "hf").path
    assert "Not measured: poems.txt is missing." in (path / "README.md").read_text(encoding="utf-8")


def test_the_card_of_a_file_is_beside_it_and_not_overwritten(run, tmp_path):
    card = tmp_path / "poems.html.md"
    card.write_text("my notes", encoding="utf-8")
    with pytest.raises(UserError, match=r"poems\.html\.md already exists"):
        export(run, "html", tmp_path / "poems.html")
    assert not (tmp_path / "poems.html").exists()
    export(run, "html", tmp_path / "poems.html", overwrite=True)
    assert card.read_text(encoding="utf-8").startswith("# run\n")
