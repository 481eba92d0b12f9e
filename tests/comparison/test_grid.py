"""Grids of settings, successive halving, and the settings of the best run."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest

from makemore.comparison.best import require_best_path, settings_to_repeat, write_best
from makemore.comparison.cells import CellsRequest, make_cells
from makemore.comparison.compare import CompareRequest, compare
from makemore.comparison.halving import Round, _plan_line, plan_rounds
from makemore.errors import UserError
from makemore.runs.directory import RunDir
from makemore.runs.run import load
from makemore.training.records import TrainingInterrupted
from makemore.training.request import TrainRequest
from makemore.training.train import train
from tests.comparison.test_compare import write_words

pytestmark = pytest.mark.usefixtures("forked_runs")

GRID = ("model.n_hidden=8,24", "train.lr=0.003,0.03")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return write_words(tmp_path_factory.mktemp("grid") / "words.txt", n=1200)


def cells_of(words: Path, **changes) -> list:
    return make_cells(str(words), CellsRequest(**{"models": "mlp", "steps": 5, "device": "cpu", **changes}))


def grid_request(words: Path, out: Path, **changes) -> CompareRequest:
    options = {"models": "mlp", "steps": 20, "grid": GRID[:1], "seeds": 1, "out": out, "device": "cpu"}
    return CompareRequest(inputs=(str(words),), **{**options, **changes})


class TestCells:
    def test_every_combination_is_a_cell(self, words):
        cells = cells_of(words, grid=GRID, seeds=2)
        assert [cell.folder.name for cell in cells[:4]] == [
            "mlp-char-n_hidden=8-optimizer.lr=0.003-0",
            "mlp-char-n_hidden=8-optimizer.lr=0.03-0",
            "mlp-char-n_hidden=24-optimizer.lr=0.003-0",
            "mlp-char-n_hidden=24-optimizer.lr=0.03-0",
        ]
        assert len(cells) == len({cell.folder for cell in cells}) == 8
        assert cells[3].settings == {"model.n_hidden": "24", "train.optimizer.lr": "0.03"}
        assert cells[3].request.requested.model.n_hidden == 24
        assert cells[3].request.requested.train.optimizer.lr == 0.03

    def test_a_setting_applies_to_the_models_that_have_it(self, words):
        cells = cells_of(words, models="mlp,bigram,auto", grid=("model.n_hidden=8,24",))
        assert [(cell.request.model, cell.settings) for cell in cells] == [
            ("mlp", {"model.n_hidden": "8"}),
            ("mlp", {"model.n_hidden": "24"}),
            ("bigram", {}),
            ("auto", {}),
        ]

    def test_lists_are_values(self, words):
        cells = cells_of(words, grid=("train.milestones=[0.5,0.8],auto",))
        assert [cell.settings for cell in cells] == [
            {"train.schedule.milestones": "[0.5,0.8]"},
            {"train.schedule.milestones": "auto"},
        ]

    @pytest.mark.parametrize(
        ("grid", "message"),
        [
            (("model.n_hidden",), "write section.name=value,value"),
            (("model.n_hidden=8,",), "write section.name=value,value"),
            (("corpus.mode=lines,text",), "scores on other splits"),
            (("tokenizer=char,byte",), "use --tokenizers instead"),
            (("model.n_hiden=8,16",), "unknown setting 'model.n_hiden'; did you mean 'model.n_hidden'"),
            (("train.lrr=1,2",), "unknown setting .*did you mean"),
            (("model.n_hidden=8,many",), "n_hidden"),
            (("train.lr=0.1", "train.optimizer.lr=0.2"), "given twice"),
            (("train.seed=1,2",), "use --seeds instead"),
            (("train.max_time=5s,10s",), "use --max-time instead"),
        ],
    )
    def test_a_grid_that_cannot_be_trained(self, words, grid, message):
        with pytest.raises(UserError, match=message):
            cells_of(words, grid=grid)

    def test_an_empty_text(self, tmp_path):
        (tmp_path / "empty.txt").touch()
        with pytest.raises(UserError, match=r"empty\.txt is empty"):
            cells_of(tmp_path / "empty.txt")


class TestRounds:
    def test_each_round_takes_the_same_time_and_all_take_the_total(self):
        rounds = plan_rounds(6, n_seeds=2, total=240.0)
        assert [size for size, _ in rounds] == [6, 3, 2, 1]
        # A round has 60 s: 5 s for each of 12 runs, 10 s for each of 6, and so on.
        assert [seconds for _, seconds in rounds] == pytest.approx([5, 15, 30, 60])
        each = np.diff([0, *(seconds for _, seconds in rounds)])
        assert sum(2 * size * s for (size, _), s in zip(rounds, each, strict=True)) == pytest.approx(240)

    def test_a_short_first_round_is_announced(self):
        assert _plan_line([Round(16, 0.75), Round(8, 2.25)], 16).endswith("give fewer values")
        line = "2 rounds; in the first, each of 4 runs trains for 5 s"
        assert _plan_line([Round(2, 5.0), Round(1, 15.0)], 4) == line

    def test_one_setting_has_one_round(self):
        assert plan_rounds(1, n_seeds=3, total=30.0) == [(1, 10.0)]


def test_best_does_not_replace_a_file_of_another_kind(tmp_path):
    path = tmp_path / "notes.toml"
    path.write_text("mine = 1\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"notes\.toml"):
        require_best_path(path)


@pytest.mark.slow
class TestGrid:
    @pytest.fixture(scope="class")
    @classmethod
    def undisturbed(cls, words, tmp_path_factory):
        return compare(grid_request(words, tmp_path_factory.mktemp("undisturbed") / "runs"))

    def test_settings_are_columns(self, undisturbed):
        assert undisturbed.differences == ["model.n_hidden"]
        assert [row.name for row in undisturbed.rows] == ["mlp n_hidden=24", "mlp n_hidden=8"]

    def test_a_grid_killed_three_times_gives_the_same_table(self, words, undisturbed, tmp_path):
        request = [sys.executable, "-m", "makemore", "compare", str(words), "--models", "mlp"]
        request += ["--steps", "20", "--device", "cpu", "--out", str(tmp_path / "runs")]
        request += [part for axis in GRID[:1] for part in ("--grid", axis)]
        rng = random.Random(3)
        for _ in range(3):
            process = subprocess.Popen(request, stderr=subprocess.DEVNULL, start_new_session=True)
            time.sleep(rng.uniform(2, 6))
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        resumed = compare(grid_request(words, tmp_path / "runs"))
        figures = [
            [(row.name, [run.score.nats for run in row.runs]) for row in comparison.rows]
            for comparison in (undisturbed, resumed)
        ]
        assert figures[0] == figures[1]

    def test_the_best_settings_can_be_trained_again(self, words, undisturbed, tmp_path):
        assert write_best(tmp_path / "best.toml", undisturbed) == undisturbed.rows[0].name
        best = undisturbed.rows[0].config
        again = TrainRequest(input=str(words), config=tmp_path / "best.toml", out=tmp_path / "again")
        train(again)
        repeated = load(tmp_path / "again").config
        assert settings_to_repeat(repeated) == settings_to_repeat(best)
        assert tomllib.loads((tmp_path / "best.toml").read_text(encoding="utf-8"))["model"]["n_hidden"] == 24


@pytest.mark.slow
class TestHalving:
    def test_the_worse_half_is_stopped_even_if_interrupted(self, words, tmp_path):
        options = {"steps": None, "total_time": 8.0}
        request = grid_request(words, tmp_path / "runs", **options)
        begun = time.monotonic()
        with pytest.raises(TrainingInterrupted):
            compare(request, stop=lambda: time.monotonic() - begun > 6)
        comparison = compare(request)
        assert len(comparison.rows) == 2
        assert len(comparison.stopped) == 1
        assert "stopped after 2 of 6 s" in comparison.stopped[0]
        assert "behind the best 1 of 2" in comparison.stopped[0]
        finished = [row for row in comparison.rows if RunDir(row.runs[0].folder).read_result() is not None]
        assert len(finished) == 1
        seconds = sorted(row.runs[0].seconds for row in comparison.rows)
        assert 0 < seconds[0] < seconds[-1] / 2
        assert all(row.runs[0].tokens > 0 for row in comparison.rows)
        again = compare(request)  # everything is reused
        assert again.stopped == comparison.stopped
        assert [row.runs[0].score.nats for row in again.rows] == [
            row.runs[0].score.nats for row in comparison.rows
        ]
        with pytest.raises(UserError, match="another --budget-total"):
            compare(dataclasses.replace(request, total_time=13.0))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"steps": 5}, "leave out --max-time and --steps"),
            ({"models": "auto", "grid": (), "steps": None}, "can't be stopped halfway"),
        ],
    )
    def test_requests_that_cannot_be_fulfilled(self, words, tmp_path, changes, message):
        with pytest.raises(UserError, match=message):
            compare(grid_request(words, tmp_path / "runs", total_time=10.0, **changes))
