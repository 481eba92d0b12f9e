"""Comparison of models on one text and of existing runs, and when runs can't be ranked."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from pathlib import Path

import pytest

from makemore.cli.tables import comparison_markdown, comparison_table
from makemore.comparison.compare import CompareRequest, compare
from makemore.errors import UserError
from makemore.evaluation.evaluate import evaluate
from makemore.report.comparison import comparison_page
from makemore.runs.directory import RunDir
from makemore.runs.run import load
from makemore.runtime.files import read_json
from makemore.training.records import TrainingInterrupted
from makemore.training.request import TrainRequest
from makemore.training.train import train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked_runs")]


def write_words(path: Path, n: int = 400, seed: int = 7) -> Path:
    rng = random.Random(seed)
    words = ["".join(rng.choice("bdkl") + rng.choice("aeiou") for _ in range(3)) for _ in range(n)]
    path.write_text("\n".join(words) + "\n", encoding="utf-8")
    return path


def write_prose(path: Path, seed: int = 4) -> Path:
    rng = random.Random(seed)
    text = " ".join(rng.choice(["bread", "and", "crème", "salt", "came", "of", "a"]) for _ in range(6000))
    path.write_text(text + "\n", encoding="utf-8")
    return path


def request(path: Path, out: Path, **changes) -> CompareRequest:
    default = CompareRequest(inputs=(str(path),), models="count,bigram", steps=5, out=out, device="cpu")
    return dataclasses.replace(default, **changes)


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    """The directory and the comparison of two models with two seeds each."""
    folder = tmp_path_factory.mktemp("ladder")
    path = write_words(folder / "words.txt")
    return folder, compare(request(path, folder / "runs", seeds=2))


def test_every_cell_is_a_separate_run(ladder):
    folder, comparison = ladder
    names = {f"{model}-char-{seed}" for model in ("count", "bigram") for seed in (0, 1)}
    assert {p.name for p in (folder / "runs").iterdir()} == names
    for name in names:
        config = load(folder / "runs" / name).config
        assert (config.model.name, str(config.train.seed)) == (name.split("-")[0], name[-1])
    assert [row.name for row in comparison.rows] == ["count", "bigram"]
    assert [run.seed for row in comparison.rows for run in row.runs] == [0, 1, 0, 1]
    assert not comparison.failures


def test_figures_match_the_runs(ladder):
    _, comparison = ladder
    best, other = comparison.rows
    for row in comparison.rows:
        scores = [evaluate(load(run.folder)) for run in row.runs]
        mean = sum(score.bits_per_byte for score in scores) / 2
        assert row.result.bits_per_byte == pytest.approx(mean)
        assert row.bits_range == (
            min(s.bits_per_byte for s in scores),
            max(s.bits_per_byte for s in scores),
        )
        assert row.result.ci95[0] < mean < row.result.ci95[1]
        assert all(run.peak_memory > 10**7 and run.sampling_speed > 0 for run in row.runs)
        assert 0 <= row.memorised <= 1
    assert best.result.difference == 0
    assert other.result.difference == pytest.approx(other.result.bits_per_byte - best.result.bits_per_byte)
    assert other.result.beyond_noise
    assert best.unseen_bits_per_byte is not None


def test_finished_runs_are_reused_and_missing_runs_trained(ladder):
    folder, comparison = ladder
    result_json = folder / "runs" / "count-char-0" / "result.json"
    before = result_json.stat().st_mtime_ns
    shutil.rmtree(folder / "runs" / "bigram-char-1")
    repeated = compare(request(folder / "words.txt", folder / "runs", seeds=2))
    assert result_json.stat().st_mtime_ns == before
    for first, second in zip(comparison.rows, repeated.rows, strict=True):
        assert second.result == first.result


def test_runs_with_other_settings_are_refused(ladder):
    folder, _ = ladder
    path, runs = folder / "words.txt", folder / "runs"
    with pytest.raises(UserError, match="was trained with steps 5, not 6"):
        compare(request(path, runs, steps=6))
    other = write_words(folder / "other.txt", seed=8)
    with pytest.raises(UserError, match="was trained with text"):
        compare(request(other, runs))


def test_changed_text_is_refused(tmp_path):
    path = write_words(tmp_path / "words.txt")
    compare(request(path, tmp_path / "runs", models="count"))
    write_words(path, seed=8)
    with pytest.raises(UserError, match=r"has changed since .*--overwrite"):
        compare(request(path, tmp_path / "runs", models="count"))
    compare(request(path, tmp_path / "runs", models="count", overwrite=True))


def test_interrupted_comparison_resumes(tmp_path):
    path = write_words(tmp_path / "words.txt")
    bigram_request = request(path, tmp_path / "runs", models="bigram", steps=1500)
    state = tmp_path / "runs" / "bigram-char-0" / "metrics.jsonl"
    with pytest.raises(TrainingInterrupted):
        compare(bigram_request, stop=state.exists)
    run = RunDir(state.parent)
    assert run.read_result() is None
    steps = run.states.read_newest(run.read_config().run_id)[0]["trainer"]["step"]
    assert 0 < steps < 1500
    (row,) = compare(bigram_request).rows
    assert read_json(state.with_name("result.json"))["steps"] <= 1500
    assert row.runs[0].tokens > 0


def test_failed_run_is_reported_and_skipped(tmp_path, monkeypatch):
    path = write_prose(tmp_path / "prose.txt")
    (tmp_path / "broken_model.py").write_text(
        "from typing import Literal\n"
        "from makemore.models.bigram import Bigram, BigramConfig\n"
        "class BrokenConfig(BigramConfig):\n"
        "    name: Literal['broken'] = 'broken'\n"
        "class Broken(Bigram):\n"
        "    Config = BrokenConfig\n"
        "    @classmethod\n"
        "    def recipe(cls, facts):\n"
        "        from makemore.errors import UserError\n"
        "        raise UserError('no recipe')\n"
    )
    from makemore.models import MODELS

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(MODELS, "_entries", {**MODELS._entries, "broken": "broken_model:Broken"})
    comparison = compare(request(path, tmp_path / "runs", models="broken,count"))
    assert [row.name for row in comparison.rows] == ["count"]
    assert [(f.name, f.reason) for f in comparison.failures] == [("broken-char-0", "no recipe")]
    with pytest.raises(UserError, match="no recipe"):
        compare(request(path, tmp_path / "runs", models="broken"))


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenized")
    path = write_prose(folder / "prose.txt")
    for tokenizer in ("char", "byte", "bpe:300"):
        train(
            TrainRequest(
                input=str(path), model="count", tokenizer=tokenizer, out=folder / tokenizer.replace(":", "-")
            )
        )
    return folder


def test_tokenizers_are_compared_on_the_same_blocks(tokenized):
    runs = [str(tokenized / name) for name in ("char", "byte", "bpe-300")]
    comparison = compare(CompareRequest(inputs=tuple(runs)))
    scores = {row.tokenizer: row.runs[0].score for row in comparison.rows}
    assert len(scores) == 3
    assert len({score.bytes for score in scores.values()}) == 1
    assert len({tuple(score.unit_bytes_U) for score in scores.values()}) == 1
    assert scores["char"].tokens != scores["byte"].tokens
    for score in scores.values():
        assert score.unit_nats_U.sum() == pytest.approx(score.nats)


def test_runs_on_different_texts_need_a_common_file(tokenized, ladder):
    folder, _ = ladder
    common = write_words(tokenized / "common.txt", n=30, seed=9)
    lines, text = folder / "runs" / "count-char-0", tokenized / "char"
    with pytest.raises(UserError, match=r"different splits.*--file"):
        compare(CompareRequest(inputs=(str(lines), str(text))))
    with pytest.raises(UserError, match="one reads the text as lines"):
        compare(CompareRequest(inputs=(str(lines), str(text)), file=common))
    other = tokenized / "other-words.txt"
    train(TrainRequest(input=str(write_words(other, seed=5)), model="count", out=tokenized / "other-lines"))
    comparison = compare(CompareRequest(inputs=(str(lines), str(tokenized / "other-lines")), file=common))
    assert comparison.source == comparison.split == "common.txt"
    assert {row.name for row in comparison.rows} == {"count-char-0", "other-lines"}
    score = evaluate(load(lines), common)
    assert score.nats in [row.runs[0].score.nats for row in comparison.rows]


def test_json_is_complete(ladder):
    _, comparison = ladder
    figures = json.loads(json.dumps(comparison.as_dict()))
    assert [row["name"] for row in figures["rows"]] == ["count", "bigram"]
    assert [len(row["runs"]) for row in figures["rows"]] == [2, 2]
    assert figures["rows"][1]["beyond_noise"] is True


class TestDifferences:
    @pytest.fixture(scope="class")
    @classmethod
    def runs(cls, tmp_path_factory):
        folder = tmp_path_factory.mktemp("different")
        path = write_words(folder / "words.txt")
        options = {
            "narrow": ("mlp", {"n_hidden": 16}, {"lr": 0.01}),
            "wide": ("mlp", {"n_hidden": 48}, {"lr": 0.01}),
            "table": ("bigram", {}, {"lr": 0.02}),
        }
        for name, (model, settings, changes) in options.items():
            train(
                TrainRequest(
                    input=str(path),
                    model=model,
                    out=folder / name,
                    train={"steps": 5, "batch_tokens": 512, "optimizer": "adamw", **changes},
                    settings=tuple(f"model.{key}={value}" for key, value in settings.items()),
                )
            )
        return [str(folder / name) for name in options]

    def test_settings_of_a_model_are_compared_among_its_runs(self, runs):
        comparison = compare(CompareRequest(inputs=tuple(runs[:2])))
        assert comparison.differences == ["model.n_hidden"]
        rows = {row["name"]: row["settings"] for row in comparison.as_dict()["rows"]}
        assert rows == {"narrow": {"model.n_hidden": "16"}, "wide": {"model.n_hidden": "48"}}

    def test_other_settings_are_compared_among_all_runs(self, runs):
        comparison = compare(CompareRequest(inputs=tuple(runs)))
        assert "model.n_hidden" in comparison.differences
        assert "train.optimizer.lr" in comparison.differences
        assert "model.weight_penalty" not in comparison.differences
        rows = {row["name"]: row["settings"] for row in comparison.as_dict()["rows"]}
        assert rows["table"]["model.n_hidden"] == "–"
        assert rows["table"]["train.optimizer.lr"] == "0.02"
        assert rows["wide"]["train.optimizer.lr"] == "0.01"

    def test_equal_runs_have_no_differences(self, runs, tmp_path):
        shutil.copytree(runs[0], tmp_path / "copy")
        comparison = compare(CompareRequest(inputs=(runs[0], str(tmp_path / "copy"))))
        assert comparison.differences == []

    def test_another_text_of_the_same_name_and_other_versions_show(self, runs, tmp_path):
        path = write_words(tmp_path / "words.txt", seed=8)
        options = {"steps": 5, "batch_tokens": 512, "optimizer": "adamw", "lr": 0.01}
        other = TrainRequest(
            input=str(path),
            model="mlp",
            out=tmp_path / "other",
            train=options,
            settings=("model.n_hidden=16",),
        )
        train(other)
        folder = RunDir(tmp_path / "other")
        config = folder.read_config()
        folder.write_config(config.model_copy(update={"versions": {**config.versions, "torch": "1.0"}}))
        comparison = compare(CompareRequest(inputs=(runs[0], str(tmp_path / "other")), file=path))
        assert comparison.differences == ["versions.torch", "text.sha256"]

    def test_seeds_are_merged_only_if_nothing_else_differs(self, runs, tmp_path):
        def copy(name: str, seed: int, torch_version: str) -> str:
            shutil.copytree(runs[0], tmp_path / name)
            folder = RunDir(tmp_path / name)
            config = folder.read_config()
            versions = {**config.versions, "torch": torch_version}
            reseeded = config.train.model_copy(update={"seed": seed})
            folder.write_config(config.model_copy(update={"train": reseeded, "versions": versions}))
            return str(tmp_path / name)

        old, other, new = copy("run-0", 0, "1.0"), copy("run-1", 1, "1.0"), copy("run-2", 2, "2.0")
        merged = compare(CompareRequest(inputs=(old, other)))
        assert [(row.name, len(row.runs)) for row in merged.rows] == [("run", 2)]
        apart = compare(CompareRequest(inputs=(old, new)))
        assert sorted(row.name for row in apart.rows) == ["run-0", "run-2"]
        assert apart.differences == ["train.seed", "versions.torch"]
        assert compare(CompareRequest(inputs=(old, other, new))).differences == ["versions.torch"]

    def test_tables_and_pages_show_them(self, runs):
        comparison = compare(CompareRequest(inputs=tuple(runs[:2]), with_details=True))
        table = comparison_table(comparison).split("\n\n")[-1].splitlines()
        assert table[0].split() == ["run", "tokenizer", "model.n_hidden"]
        assert "| model.n_hidden |" in comparison_markdown(comparison).splitlines()[0]
        pytest.importorskip("altair")
        assert "model.n_hidden</button>" in comparison_page(comparison)
