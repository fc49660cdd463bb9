"""The report in a real browser: nothing asked for, nothing complained of, nothing wider than the screen."""

from __future__ import annotations

import os

import pytest

from dualenc.evaluate.page.report import write_report
from tests.evaluate.everything import everything
from tests.serve import browser

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(
        not os.path.exists(browser.CHROMIUM),
        reason=f"{browser.CHROMIUM} is not there: the page needs a browser to be looked at",
    ),
]


@pytest.fixture(scope="module")
def chromium():
    with browser.chromium() as started:
        yield started


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("everything")
    report, sections, curve, provenance = everything(folder)
    return write_report(folder, report, sections, curve, provenance, "Everything that a page can hold")


@pytest.fixture(params=[(size, dark) for size in browser.SIZES for dark in (False, True)], ids=str)
def opened(chromium, page_file, request):
    size, dark = request.param
    page = browser.Page(chromium, page_file.as_uri(), size, dark)
    page.tab.goto(page_file.as_uri())
    yield page, size, dark
    page.close()


def test_the_page_fits_and_asks_for_nothing(opened, page_file, tmp_path):
    page, size, dark = opened
    page.tab.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true })")
    assert page.errors == []
    assert [one.url for one in page.asked if not one.url.startswith("data:")] == [page_file.as_uri()]
    width = browser.SIZES[size][0]
    assert page.tab.evaluate("document.documentElement.scrollWidth") == width
    over = """() => [...document.querySelectorAll("main *")].filter((one) => {
      const { right } = one.getBoundingClientRect();
      return right > innerWidth + 1 && !one.closest(".scroll");
    }).map((one) => one.outerHTML.slice(0, 120))"""
    assert page.tab.evaluate(over) == []
    assert page.tab.evaluate("[...document.images].every((one) => one.complete && one.naturalWidth > 0)")
    background = page.tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) == dark
    assert page.picture(f"report-{size}-{'dark' if dark else 'light'}", tmp_path).stat().st_size > 10_000


def test_words_can_be_read_on_what_lies_under_them(opened):
    """WCAG's contrast, 4.5 to 1, of every colour that text has against the card and the page."""
    page = opened[0]
    worst = page.tab.evaluate(
        """() => {
      const style = getComputedStyle(document.documentElement);
      const light = (name) => {
        const hex = style.getPropertyValue(name).trim().slice(1);
        const part = (i) => { const v = parseInt(hex.slice(2 * i, 2 * i + 2), 16) / 255;
                              return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
        return 0.2126 * part(0) + 0.7152 * part(1) + 0.0722 * part(2);
      };
      const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
      const pairs = [["--right", "--right-soft"], ["--wrong", "--wrong-soft"]];
      for (const ink of ["--ink", "--quiet", "--accent", "--right", "--wrong"])
        for (const under of ["--card", "--page"]) pairs.push([ink, under]);
      return Math.min(...pairs.map(([a, b]) => ratio(a, b)));
    }"""
    )
    assert worst >= 4.5


def test_long_tables_scroll_in_their_card_with_their_head_in_sight(chromium, page_file):
    page = browser.Page(chromium, page_file.as_uri(), "phone")
    page.tab.goto(page_file.as_uri())
    closed = page.tab.evaluate("document.documentElement.scrollHeight")
    page.tab.click("summary >> text=400 rows")
    assert page.tab.evaluate("document.documentElement.scrollHeight") < closed + 844
    seen = page.tab.evaluate(
        """() => {
      const box = document.querySelector("details[open] .tall");
      box.scrollTop = 5000;
      return [box.scrollTop, box.querySelector("th").getBoundingClientRect().top - box.getBoundingClientRect().top];
    }"""
    )
    assert seen[0] == 5000 and abs(seen[1]) < 2
    page.close()


def test_paper_has_every_row(chromium, page_file):
    page = browser.Page(chromium, page_file.as_uri())
    page.tab.goto(page_file.as_uri())
    page.tab.emulate_media(media="print", color_scheme="dark")
    height = "document.querySelector('.tall').getBoundingClientRect().height"
    assert page.tab.evaluate(height) > 5_000
    assert (
        page.tab.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--card')").strip() == "#ffffff"
    )
    page.close()
