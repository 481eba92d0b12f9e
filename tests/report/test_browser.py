"""The report in Chromium, if installed: no errors, sorting, nothing wider than a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

EXECUTABLES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for path in map(shutil.which, EXECUTABLES) if path), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="Chromium isn't installed")]
PHONE = 380
PROBE = """
<script>
  const errors = [];
  window.addEventListener("error", (event) => errors.push(event.message), true);
  document.addEventListener("securitypolicyviolation", (event) => errors.push(event.violatedDirective));
  window.addEventListener("load", () => {
    const orders = {};
    for (const table of document.querySelectorAll("table.sortable")) {
      const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
      for (const head of table.tHead.rows[0].cells) {
        head.querySelector("button").click();
        const up = names();
        const firstSort = head.getAttribute("aria-sort");
        head.querySelector("button").click();
        orders[head.textContent] = [up, names(), firstSort, head.getAttribute("aria-sort")];
      }
    }
    const wide = [...document.querySelectorAll("body *")].filter((part) =>
      !part.closest(".wide, svg") && part.getBoundingClientRect().right > innerWidth + 0.5);
    const output = document.createElement("pre");
    output.id = "probe";
    output.textContent = JSON.stringify({
      errors, orders, width: innerWidth, scroll: document.documentElement.scrollWidth,
      cutOff: [...document.querySelectorAll(".wide")].filter((p) => p.scrollWidth > p.clientWidth).length,
      wide: wide.map((part) => part.outerHTML.slice(0, 80)),
      background: getComputedStyle(document.body).backgroundColor,
    });
    document.body.append(output);
  });
</script>
"""


def probe(page: Path, folder: Path, *options: str, width: int = PHONE) -> dict:
    """Load a page in the browser and return what PROBE measured."""
    assert BROWSER is not None
    copy = folder / page.name
    copy.write_text(page.read_text(encoding="utf-8").replace("<head>", "<head>" + PROBE), encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},800", *options]
    process = subprocess.run(
        [*command, "--dump-dom", copy.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert ":CONSOLE" not in process.stderr, process.stderr
    match = re.search(r'<pre id="probe">(.*?)</pre>', process.stdout, re.DOTALL)
    assert match is not None
    return json.loads(html.unescape(match[1]))


@pytest.mark.parametrize("mode", ["lines", "text"])
def test_page_fits_a_phone(pages, tmp_path, mode):
    measured = probe(pages[mode], tmp_path)
    assert measured["errors"] == []
    assert measured["width"] == PHONE
    assert measured["scroll"] <= PHONE
    assert measured["wide"] == []


@pytest.mark.parametrize("mode", ["lines", "text"])
def test_no_table_is_cut_off_at_1200_pixels(pages, tmp_path, mode):
    assert probe(pages[mode], tmp_path, width=1200)["cutOff"] == 0


def test_columns_sort_both_ways(pages, comparisons, tmp_path):
    orders = probe(pages["lines"], tmp_path, width=1200)["orders"]
    rows = comparisons["lines"].rows
    up, down, first_sort, second_sort = orders["parameters"]
    by_size = [row.name for row in sorted(rows, key=lambda row: row.runs[0].parameters)]
    assert (up, down) == (by_size, by_size[::-1])
    assert (first_sort, second_sort) == ("ascending", "descending")
    assert orders["run"][0] == sorted((row.name for row in rows), key=lambda name: name.strip("<"))
    # The mixture's peak memory is unknown, so it comes last both ways.
    assert orders["memory"][0][-1] == orders["memory"][1][-1] == "pair"


def test_background_follows_the_colour_scheme(pages, tmp_path):
    backgrounds = [
        probe(pages["text"], tmp_path, f"--blink-settings=preferredColorScheme={scheme}")["background"]
        for scheme in (0, 1)
    ]
    brightness = [sum(map(int, re.findall(r"\d+", background)[:3])) / 3 for background in backgrounds]
    assert brightness[0] < 60 < 200 < brightness[1]
