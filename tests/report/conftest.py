"""Comparisons of a few tiny runs, and their report pages."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from makemore.comparison.compare import CompareRequest, compare
from makemore.comparison.result import Comparison
from makemore.report.comparison import comparison_page
from makemore.training.mixing.mix import mix
from makemore.training.request import TrainRequest
from makemore.training.train import train

RUNS = ("count", "bigram", "<b>mlp & co", "pair")


@pytest.fixture(scope="session")
def comparisons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Comparison]:
    """Compare three models, one with markup in its name, and a mixture; by mode. Running text has
    adaptive scores, too."""
    results = {}
    for mode in ("lines", "text"):
        folder = tmp_path_factory.mktemp(mode)
        rng = random.Random(3)
        words = ["".join(rng.choice("bdkl") + rng.choice("aei") for _ in range(3)) for _ in range(3000)]
        path = folder / "words.txt"
        path.write_text(("\n" if mode == "lines" else " ").join(words) + "\n", encoding="utf-8")
        for name in RUNS[:3]:
            model = "mlp" if "mlp" in name else name
            settings = {"steps": 20, "eval_interval": 5, "compile": "no"}
            train(
                TrainRequest(
                    input=str(path), model=model, out=folder / name, train=settings, corpus={"mode": mode}
                )
            )
        mix([folder / "count", folder / "bigram"], folder / "pair")
        runs = tuple(str(folder / name) for name in RUNS)
        results[mode] = compare(CompareRequest(inputs=runs, with_details=True, adaptive=mode == "text"))
    return results


@pytest.fixture(scope="session")
def pages(comparisons: dict[str, Comparison], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Report page of each comparison, by mode."""
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    folder = tmp_path_factory.mktemp("pages")
    for mode, comparison in comparisons.items():
        (folder / f"{mode}.html").write_text(comparison_page(comparison), encoding="utf-8")
    return {mode: folder / f"{mode}.html" for mode in comparisons}
