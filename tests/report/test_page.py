"""The report page: well-formed, self-contained and complete."""

from __future__ import annotations

import html.parser
import json
import math
import re
from typing import Any

import pytest

from makemore.cli.tables import gradcheck_table
from makemore.inspection.gradcheck import GradRow
from makemore.report.columns import NAME, notes, tables
from makemore.report.numbers import interval, memory, number, with_unit
from tests.report.conftest import RUNS

VOID = {"meta", "link", "br"}
MODES = pytest.mark.parametrize("mode", ["lines", "text"])


class PageParser(html.parser.HTMLParser):
    """Check that tags nest correctly; collect table cells, links and the charts' specifications."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.rows: list[list[str]] = []
        self.values: list[list[str]] = []
        self.heads: list[str] = []
        self.charts: list[dict[str, Any]] = []
        self.is_chart = False

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.links += [v for k, v in attrs if k in ("href", "src") and v]
        self.is_chart = attributes.get("type") == "application/json"
        if tag == "tr":
            self.rows.append([])
            self.values.append([])
        if tag == "td":
            self.rows[-1].append("")
            self.values[-1].append(attributes.get("data-v", ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data):
        if self.is_chart and self.open[-1] == "script":
            self.charts.append(json.loads(data))
        if self.open and self.open[-1] == "td":
            self.rows[-1][-1] += data
        if self.open[-2:] == ["th", "button"]:
            self.heads.append(data)


def parse_page(path) -> PageParser:
    parser = PageParser()
    parser.feed(path.read_text(encoding="utf-8"))
    parser.close()
    assert parser.open == []
    return parser


@MODES
def test_page_is_well_formed_and_self_contained(pages, mode):
    text = pages[mode].read_text(encoding="utf-8")
    assert parse_page(pages[mode]).links == ["data:,"]
    assert not re.search(r"https?://|@import|url\(", re.sub("<script.*?</script>", "", text, flags=re.DOTALL))
    assert "default-src 'none'" in text
    assert "unsafe-eval" not in text
    assert len(text.encode()) < 1.5e6
    assert "<b>mlp" not in text
    assert "&lt;b&gt;mlp &amp; co" in text
    assert "nan" not in re.sub("<script.*?</script>|<[^>]*>", " ", text, flags=re.DOTALL).split()


@MODES
def test_table_holds_every_row_and_value(pages, comparisons, mode):
    comparison = comparisons[mode]
    page = parse_page(pages[mode])
    first, *others = tables(comparison)
    groups = [((*NAME, *first.columns), first.rows)]
    groups += [((NAME[0], *columns), rows) for columns, rows in others]
    assert page.heads == [column.title for columns, _ in groups for column in columns]
    rows = [row for row in page.rows if row and row[0] in RUNS]
    assert rows == [[c.text(row) for c in columns] for columns, ranked in groups for row in ranked]
    i = [column.title for column in groups[0][0]].index("bits/byte")
    ranked = [values for values in page.values if values and values[0] in RUNS][: len(RUNS)]
    bits = [float(values[i]) for values in ranked]
    assert bits == sorted(bits)


def test_adaptive_scores_are_ranked_on_their_own(pages, comparisons):
    rows = comparisons["text"].rows
    assert all(row.adaptive is None for row in comparisons["lines"].rows)
    by_adaptive = sorted(rows, key=lambda row: row.adaptive.bits_per_byte)
    assert [row.adaptive.verdict for row in by_adaptive].count("best") == 1
    assert by_adaptive[0].adaptive.verdict == "best"
    group = next(group for group in tables(comparisons["text"]) if group.columns[0].title == "adaptive")
    assert [row.name for row in group.rows] == [row.name for row in by_adaptive]
    text = pages["text"].read_text(encoding="utf-8")
    assert f"<b>{html.escape(by_adaptive[0].name)}</b> is best while it learns from the text" in text
    assert "while it learns" not in pages["lines"].read_text(encoding="utf-8")


@MODES
def test_page_has_every_chart_and_section(pages, comparisons, mode):
    text = pages[mode].read_text(encoding="utf-8")
    charts = {chart["description"]: chart for chart in parse_page(pages[mode]).charts}
    assert list(charts) == [
        "Validation loss by time",
        "Validation loss by tokens",
        "Quality by parameters",
        "Quality by training time",
        "Calibration",
        "Loss by position",
    ]
    for title in ("Hardest tokens", "Samples", "Recipes"):
        assert f"<h2>{title}</h2>" in text
    for row in comparisons[mode].rows:
        assert row.profile is not None
        assert row.profile.hard
        assert 0 <= row.profile.calibration.error <= 1
        assert len(row.profile.positions) > 2
    curves = {row.name: len(row.profile.curve) for row in comparisons[mode].rows}
    assert curves["bigram"] == 4
    assert curves["pair"] == 0
    for title, chart in charts.items():
        points = [point for data in chart["datasets"].values() for point in data if "run" in point]
        assert {point["run"] for point in points} == set(RUNS), title  # the mixture, too
        assert sum(point["end"] for point in points) == len(RUNS)


def test_texts_too_short_for_an_interval_are_called_so():
    assert interval((0.0, math.inf)) == interval((-math.inf, math.inf), sign="+") == "too short"


def test_missing_values_are_shown_as_a_dash():
    assert (
        number(math.inf)
        == number(None)
        == interval((math.inf, math.inf))
        == memory(None)
        == with_unit(None)
        == "–"
    )
    assert interval((-0.5, 0.25), sign="+") == "-0.5000 to +0.2500"
    assert [with_unit(n) for n in (0.5, 999, 12_345, 3_000_000, 2e9)] == ["0.5", "999", "12.3K", "3M", "2G"]
    assert [with_unit(n) for n in (999.9, 999_499, 999_999, 999_999_999)] == ["1K", "999K", "1M", "1G"]


def test_names_in_tables_are_not_markup():
    row = GradRow("mlp[v1] :dog: [/b]", "[b]", True, True, 0.0)
    assert "mlp[v1] :dog: [/b]" in gradcheck_table([row])


def test_single_seed_is_noted(comparisons):
    assert any("one seed each" in note for note in notes(comparisons["lines"]))
