"""The page in Chromium: when the first results are painted, what the console says, which hosts are asked."""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from index_measure import goal
from serve_data import Assets, texts
from serve_side import HOST, ours
from timing import progress

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
# Milliseconds since navigation began: when a first hit's picture has been painted, and when all in sight have.
WATCH = """
window.painted = {};
const seen = (name) => requestAnimationFrame(() => setTimeout(() => { window.painted[name] ??= performance.now(); }));
const look = () => {
  const sight = [...document.querySelectorAll("#grid img")].filter((one) => {
    const box = one.getBoundingClientRect();
    return box.width > 0 && box.top < innerHeight && box.bottom > 0;
  });
  const done = sight.filter((one) => one.complete && one.naturalWidth > 0);
  if (done.length) seen("first");
  if (done.length && done.length === sight.length) seen("all");
  if (!window.painted.all) requestAnimationFrame(look);
};
requestAnimationFrame(look);
"""


def wait_for_all(page: Any, patience: float = 30.0) -> None:
    """Until all in sight is painted. The page's own rules forbid what Playwright's waiting would evaluate in it."""
    until = time.perf_counter() + patience
    while not page.evaluate("'all' in window.painted"):
        if time.perf_counter() > until:
            raise RuntimeError(f"no results in {patience:g} s; the page says: {page.inner_text('body')[:500]}")
        time.sleep(0.05)


def measure(options: argparse.Namespace, found: Assets, scratch: Path) -> dict[str, Any]:
    """Each round opens a link to a search in a browser that has nothing cached, on a server that is warm."""
    from playwright.sync_api import sync_playwright

    taken: dict[str, list[float]] = {}
    console: list[str] = []
    hosts: set[str] = set()
    with ours({"pictures": found.pictures}, scratch, options.threads) as server, sync_playwright() as playwright:
        server.seconds_until("/search", {"text": "warm", "k": 10})
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        for each in range(-1, options.rounds):
            progress(f"page: {each + 1} of {options.rounds}")
            page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
            page.on("console", lambda line: console.append(line.text) if line.type in ("error", "warning") else None)
            page.on("pageerror", lambda error: console.append(str(error)))
            page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
            page.add_init_script(WATCH)
            page.goto(f"http://{HOST}:{server.port}/?q={quote(texts(90_000 + each, 1)[0])}")
            wait_for_all(page)
            if each >= 0:  # the browser itself is warm
                for name, value in page.evaluate("window.painted").items():
                    taken.setdefault(name, []).append(round(value, 1))
            time.sleep(0.3)  # what comes late is heard as well
            page.context.close()
        browser.close()
    other = sorted(host for host in hosts if host and host != f"{HOST}:{server.port}")
    return {
        "painted_ms": taken,
        "console": console,
        "other_hosts": other,
        "goals": [
            goal(
                "page: first results painted after its address is opened, s",
                statistics.median(taken["first"]) / 1e3,
                most=1,
            ),
            goal("page: errors in the console", len(console), most=0),
            goal("page: other hosts asked", len(other), most=0),
        ],
    }
