"""Output formats of ``compare`` and ``score``."""

from __future__ import annotations

import csv
import importlib.util
import io
import json

import pytest

from tests.cli.conftest import call, train


@pytest.fixture
def runs(work):
    train("words.txt", "-m", "bigram", "--steps", "5", "--out", "other")
    return ["compare", "lines", "other"]


def test_prints_a_table(runs):
    out = call(*runs).out
    assert out.startswith("words, val: bits/byte, best first")
    for title in ("95 % interval", "beyond noise", "perplexity", "memorised", "sampling/s", "memory"):
        assert title in out
    assert max(map(len, out.splitlines())) <= 110
    first, second = (out.index(f"\n{name} ") for name in ("lines", "other"))
    assert first < second
    assert "one seed each; other seeds may change the order" in out


def test_csv_and_json_agree(runs):
    (line, other) = csv.DictReader(io.StringIO(call(*runs, "--csv").out))
    rows = json.loads(call(*runs, "--json").out)["rows"]
    assert [line["name"], other["name"]] == [row["name"] for row in rows] == ["lines", "other"]
    for key in ("bits_per_byte", "perplexity", "difference", "parameters"):
        assert float(other[key]) == pytest.approx(rows[1][key])
    assert [float(other["ci95_low"]), float(other["ci95_high"])] == pytest.approx(rows[1]["ci95"])
    assert rows[0]["runs"][0]["bits_per_byte"] == pytest.approx(rows[0]["bits_per_byte"])
    assert (rows[0]["difference"], rows[1]["verdict"]) == (0, "seeds unknown")


def test_adaptive_scores_stand_beside_frozen_ones(runs):
    rows = json.loads(call(*runs, "--adaptive", "--json").out)["rows"]
    assert [row["name"] for row in rows] == ["lines", "other"]
    for row in rows:
        assert row["runs"][0]["adaptive"]["bits_per_byte"] == pytest.approx(row["adaptive_bits_per_byte"])
        assert row["adaptive_bits_per_byte"] != row["bits_per_byte"]
    best = min(row["adaptive_bits_per_byte"] for row in rows)
    assert [row["adaptive_bits_per_byte"] - best for row in rows] == [r["adaptive_difference"] for r in rows]
    assert not any(
        key.startswith("adaptive") for row in json.loads(call(*runs, "--json").out)["rows"] for key in row
    )
    out = call(*runs, "--adaptive").out
    assert "adaptive 95 % vs best" in out
    assert max(map(len, out.splitlines())) <= 120


def test_a_run_that_cannot_learn_has_no_adaptive_score(runs, work):
    """Dynamic evaluation needs the training text."""
    (work / "words.txt").rename(work / "moved.txt")
    result = call(*runs, "--adaptive", "--file", "moved.txt")
    assert "other has no adaptive score: " in result.out
    assert "lines has no" not in result.out
    (lines, other) = csv.DictReader(
        io.StringIO(call(*runs, "--adaptive", "--file", "moved.txt", "--csv").out)
    )
    assert float(lines["adaptive_ci95_low"]) > 0
    assert other["adaptive_bits_per_byte"] == other["adaptive_ci95_low"] == ""


def test_markdown_is_a_table(runs):
    lines = call(*runs, "--markdown").out.splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert set(lines[1]) <= set("|-: ")


def test_html_report_does_not_replace_the_output(runs, work):
    result = call(*runs, "--json", "--html", "pages/report.html")
    assert json.loads(result.out)["rows"]
    assert "report: pages" in result.err
    assert (work / "pages" / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_html_path_that_is_a_folder_is_refused(refused):
    assert "can't write a file there" in refused("compare", "lines", "--html", "text")


def test_html_report_without_its_packages_is_refused_before_training(refused, work, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = refused("compare", "words.txt", "--steps", "1", "--out", "grid", "--html", "page.html")
    assert "--html needs altair and vl_convert; run: pip install 'makemore[report]'" in message
    assert not (work / "grid").exists()


def test_score_prints_text_or_writes_html(work):
    (work / "t.txt").write_text("bada\n\nzed\n", encoding="utf-8")
    out = call("score", "lines", "t.txt").out
    assert out.startswith("bada")
    assert "bits/byte" in out
    assert "'z' at 3:1" in out
    both = call("score", "lines", "t.txt", "--against", "lines").out
    assert both.count("largest gains: none") == 2
    result = call("score", "lines", "t.txt", "--html", "t.html")
    assert result.status == 0
    assert "<!doctype html>" in (work / "t.html").read_text(encoding="utf-8")
