"""The list of runs."""

from __future__ import annotations

from makemore.cli.tables import runs_table
from makemore.runs.directory import RunDir
from makemore.runs.listing import list_runs
from makemore.training.request import TrainRequest
from makemore.training.train import train


def test_a_listing_says_which_part_of_val_was_scored(tmp_path):
    text = tmp_path / "words.txt"
    text.write_text("".join(f"{word}\n" for word in ("bad", "dab", "add") * 60), encoding="utf-8")
    train(TrainRequest(input=str(text), model="bigram", out=tmp_path / "runs" / "all", train={"steps": 2}))
    folder = RunDir(tmp_path / "runs" / "all")
    (summary,) = list_runs(tmp_path / "runs")
    assert (summary.split, summary.share) == ("val", 1.0)
    config = folder.read_config()
    tokens = {**config.text.tokens, "val": 4 * config.text.tokens["val"]}
    folder.write_config(config.model_copy(update={"text": config.text.model_copy(update={"tokens": tokens})}))
    (summary,) = list_runs(tmp_path / "runs")
    assert summary.share == 0.25
    assert "val, first 25%" in runs_table([summary])
