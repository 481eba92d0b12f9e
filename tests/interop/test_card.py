"""Model cards beside exports."""

from __future__ import annotations

import pytest

from makemore.errors import UserError
from makemore.interop.export import export
from makemore.runs.run import Run, load
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
    assert ("identical lines in the same split" in values) == (run.mode == "lines")
    copies = "are lines of the training text" if run.mode == "lines" else "longest passage"
    assert copies in card
    assert card.count("None") == 0


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
