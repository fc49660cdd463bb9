"""A real headless Chromium for tests of the page, and what they ask of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dualenc.index.index import Index
from tests.serve.fakes import FakeEncoder
from tests.serve.pictured import metadata_of, unit_rows
from tests.small import write_shards

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
SIZES = {"phone": (390, 844), "desktop": (1280, 800)}
ROWS, PICTURES = 1200, 24
SCRIPT = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'> a red picture"
WATCH = """
"use strict";
window.shifted = 0; window.firstHits = null; window.answers = [];
const asked = window.fetch;
window.fetch = async (address, options) => {
  const reply = await asked(address, options);
  if (String(address).endsWith("/search") && reply.ok)
    reply.clone().text().then(
      (text) => {
        const { hits } = JSON.parse(text, (name, value, { source }) => (name === "id" ? source : value));
        answers.push({ sent: JSON.parse(options.body), ids: hits.map(({ id }) => id) });
      },
      () => {}, // given up
    );
  return reply;
};
window.shown = ({ sent, ids }) => {
  const cards = [...document.querySelectorAll(".card")].map((card) => card.hit?.id);
  return ids.every((id, place) => (sent.offset ? cards.includes(id) : cards[place] === id));
};
new PerformanceObserver((list) => {
  const held = ({ node }) => node?.closest?.(".card, .bar, .summary, .chips"); // what comes after the hits may move
  for (const entry of list.getEntries()) if (!entry.hadRecentInput && entry.sources.some(held)) window.shifted += entry.value;
}).observe({ type: "layout-shift", buffered: true });
document.addEventListener("load", (event) => {
  if (event.target.closest?.(".card")) window.firstHits ??= performance.now();
}, true);
"""


def indexes(folder: Path) -> dict[str, Path]:
    """`photos`: 1,200 rows over 24 pictures, with columns to filter by, row 0's caption a script; `bare`: rows alone."""
    pictures = metadata_of(write_shards(folder / "shards", PICTURES))
    table = pictures.take(pa.array(np.arange(ROWS) % PICTURES))
    captions = [SCRIPT, *(f"picture number {i}" for i in range(1, ROWS))]
    more = {
        "caption": pa.array(captions),
        "colour": pa.array([("red", "green", "O'Hara's blue", None)[i % 4] for i in range(ROWS)]),
        "width": pa.array([100 + i for i in range(ROWS)]),
    }
    for name, column in more.items():
        if name in table.column_names:
            table = table.drop_columns([name])
        table = table.append_column(name, column)
    Index.build(unit_rows(ROWS, seed=5), folder / "photos", metadata=table, recipe="flat", encoder=FakeEncoder())
    Index.build(unit_rows(40, seed=6), folder / "bare", recipe="flat")
    return {name: folder / name for name in ("photos", "bare")}


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Playwright's browser, on the machine's own Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


class Page:
    """A page of the site: what it printed and asked for, and what it shows."""

    def __init__(self, browser: Any, url: str, size: str = "desktop", dark: bool = False):
        width, height = SIZES[size]
        self.context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            has_touch=size == "phone",
            permissions=["clipboard-read", "clipboard-write"],
        )
        self.context.set_default_timeout(30_000)
        self.tab, self.url, self.errors, self.asked = self.context.new_page(), url, [], []
        self.tab.add_init_script(WATCH)
        self.tab.on("console", lambda said: said.type == "error" and self.errors.append(said.text))
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.on("request", lambda request: self.asked.append(request))

    def open(self, query: str = "") -> Page:
        """Load the page with a query and wait for hits that can be seen."""
        self.tab.goto(f"{self.url}/{query}")
        self.tab.wait_for_selector(".card.loaded, .card.wordy")
        return self

    def ids(self) -> list[int]:
        """Ids of the hits, as they stand."""
        return [
            int(id) for id in self.tab.eval_on_selector_all(".card:not(.ghost)", "all => all.map(({hit}) => hit.id)")
        ]

    def until(self, condition: str, value: Any = None) -> None:
        """Wait until a JavaScript expression of `value` is true."""
        self.tab.wait_for_function(f"(value) => {condition}", arg=value)

    def answered(self, act: Any) -> dict[str, Any]:
        """The search that `act` causes, once its hits are shown: the JSON that was sent."""
        before = self.tab.evaluate("answers.length")
        act()
        self.until("answers.length > value && shown(answers.at(-1))", before)
        return self.tab.evaluate("answers.at(-1).sent")

    def picture(self, name: str, folder: Path) -> Path:
        """A screenshot, kept in `folder` or where DUALENC_SCREENSHOTS says."""
        path = Path(os.environ.get("DUALENC_SCREENSHOTS") or folder) / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.tab.screenshot(path=str(path))
        return path

    def close(self) -> None:
        self.context.close()
