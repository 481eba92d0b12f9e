"""Measure how fast the play page shows new predictions after a key press, in headless Chromium.

Prints one line per run: milliseconds from the key press to the frame that shows the new distribution.
"""

from __future__ import annotations

import secrets
import shutil
import statistics
import threading
from pathlib import Path

import typer
import uvicorn
from playwright.sync_api import sync_playwright

from makemore.play.server import HOST, listen, make_app
from makemore.runs.run import load

BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")
WORDS = ("emma", "olivia", "charlotte", "maximilian", "zoe")
WATCH = """
() => {
  window.times = [];
  let pressed = 0;
  document.addEventListener("keydown", () => { pressed = performance.now(); }, true);
  const pane = document.querySelector(".pane");
  new MutationObserver(() => requestAnimationFrame(() => times.push(performance.now() - pressed)))
    .observe(pane, { attributes: true, attributeFilter: ["data-shows"] });
}
"""


def main(runs: list[Path] = typer.Argument(..., help="Run directories.")) -> None:
    """Type names and print the median and the slowest latency."""
    browser_path = next((path for path in map(shutil.which, BROWSERS) if path), None)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        for path in runs:
            token, listener = secrets.token_urlsafe(24), listen(0)
            app = make_app({path.name: load(path, "cpu")}, token)
            server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
            threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True).start()
            page = browser.new_page()
            page.goto(f"http://{HOST}:{listener.getsockname()[1]}/#{token}")
            page.wait_for_selector('.pane[data-shows=""]')
            page.evaluate(WATCH)
            for word in WORDS:
                for end in range(1, len(word) + 1):
                    page.keyboard.type(word[end - 1])
                    page.wait_for_selector(f'.pane[data-shows="{word[:end]}"]')
                page.locator("#text").fill("")
                page.wait_for_selector('.pane[data-shows=""]')
            page.wait_for_timeout(100)
            times = page.evaluate("times")
            page.close()
            server.should_exit = True
            print(
                f"{path.name}: median {statistics.median(times):.0f} ms, slowest {max(times):.0f} ms "
                f"of {len(times)} keys"
            )
        browser.close()


if __name__ == "__main__":
    typer.run(main)
