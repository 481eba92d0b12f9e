"""``makemore lr-find`` on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import call

pytestmark = pytest.mark.slow


def test_prints_a_chart_and_settings_for_train(work: Path) -> None:
    result = call("lr-find", "words.txt", "--model", "mlp", "--steps", 40, "--to", "3", "--out", "a.png")
    assert result.status == 0, result.err
    *chart, suggested = result.out.splitlines()
    assert sum("← suggested" in line for line in chart) == 1
    assert suggested.startswith("suggested: --set train.lr=")
    assert "picture: a.png" in result.err
    assert (work / "a.png").is_file()
    name, value = suggested.removeprefix("suggested: ").split()
    trained = call("train", "words.txt", "--model", "mlp", "--steps", 2, "--no-compile", name, value)
    assert trained.status == 0, trained.err


def test_json_is_one_object(work: Path) -> None:
    settings = ("--set", "train.optimizer=muon", "--set", "train.lr=0.01", "--set", "train.matrix_lr=0.02")
    result = call("lr-find", "words.txt", "--model", "mlp", "--steps", 30, *settings, "--json")
    assert result.status == 0, result.err
    report = json.loads(result.out)
    assert set(report["suggested"]) == {"lr", "matrix_lr"}
    assert report["suggested"]["matrix_lr"] == pytest.approx(2 * report["suggested"]["lr"], rel=0.1)
    assert report["points"][0]["lr"] == pytest.approx(1e-5)
    assert (work / report["picture"]).is_file()


@pytest.mark.parametrize(
    "arguments",
    [
        ("lr-find", "words.txt", "--model", "count"),
        ("lr-find", "words.txt", "--model", "mpl"),
        ("lr-find", "words.txt", "--model", "mlp", "--from", "1", "--to", "0.1"),
        ("lr-find", "words.txt", "--model", "mlp", "--out", "a.txt"),
        ("lr-find", "words.txt", "--model", "mlp", "--max-time", "soon"),
        ("lr-find", "none.txt", "--model", "mlp"),
    ],
    ids=lambda arguments: " ".join(arguments[1:]),
)
def test_invalid_arguments_are_refused(refused: Callable[..., str], arguments: tuple[str, ...]) -> None:
    refused(*arguments)
