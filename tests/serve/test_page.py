"""The search page, in a real Chromium: what people do with it, and what they see when something is wrong."""

from __future__ import annotations

import base64
import contextlib
import json
import os
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from tests.serve import browser
from tests.serve.browser import SCRIPT, Page
from tests.serve.fakes import small_rows, use_fake_encoders
from tests.serve.running import in_thread, until
from tests.small import png

pytest.importorskip("playwright")
pytestmark = pytest.mark.skipif(
    not os.path.exists(browser.CHROMIUM),
    reason=f"{browser.CHROMIUM} is not there: the page needs a browser to be tested",
)
full = pytest.mark.full


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return browser.indexes(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def chromium():
    with browser.chromium() as started:
        yield started


@pytest.fixture(scope="module")
def site(folders):
    """The URL of a server over `photos` and `bare`, and its application."""
    from dualenc.serve.app import create_app
    from dualenc.serve.settings import Settings

    with pytest.MonkeyPatch.context() as patch:
        use_fake_encoders(patch)
        app = create_app(Settings(folders))
        with in_thread(app) as url:
            until(lambda: app.state.service.ready()["photos"]["encoder"] == "ready")
            yield url, app


@pytest.fixture
def page(chromium, site, request):
    """A page at desktop width; what it printed must not be an error."""
    opened = Page(chromium, site[0], **getattr(request, "param", {}))
    yield opened
    opened.close()
    assert opened.errors == []


def query(page):
    return parse_qs(urlsplit(page.tab.url).query)


def test_a_search_from_the_first_letter_to_the_link(page, chromium, site, tmp_path, record_property):
    page.open()
    record_property("first_hits_painted_ms", page.tab.evaluate("window.firstHits"))
    assert page.tab.inner_text("#facts").startswith("1,200 items · flat · exact")
    page.tab.keyboard.type("a red ")  # the field has the focus
    sent = page.answered(lambda: page.tab.keyboard.type("circle"))
    assert sent["terms"] == [{"weight": 1, "text": "a red circle"}]
    assert page.tab.inner_text("#said").startswith("60+ hits")
    page.until("document.getElementById('live').textContent === '60 hits, more below.'")
    assert query(page) == {"q": ["a red circle"]}
    page.picture("desktop", tmp_path)

    hacked = Page(chromium, site[0], "phone", dark=True).open("?item=0")
    hacked.until("document.getElementById('detail-title')?.textContent === value", SCRIPT)
    assert hacked.tab.evaluate("window.hacked") is None
    assert hacked.tab.locator("#detail script, #detail [onerror]").count() == 0
    hacked.picture("phone", tmp_path)
    hacked.tab.goto(page.tab.url)
    hacked.until("document.querySelector('.card')?.hit?.id === value", str(page.ids()[0]))
    assert hacked.ids() == page.ids() and hacked.tab.input_value("#q") == "a red circle"
    assert hacked.tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    hosts = {urlsplit(request.url).netloc for request in page.asked + hacked.asked}
    assert hosts == {urlsplit(site[0]).netloc}
    assert page.tab.evaluate("window.shifted") < 0.1 and hacked.errors == []
    hacked.close()


@full
def test_answers_that_come_late_are_not_shown(page):
    page.open()
    held = []
    page.tab.route(
        "**/search", lambda route: held.append(route) if "slow" in route.request.post_data else route.continue_()
    )
    page.tab.fill("#q", "slow")
    until(lambda: page.tab.wait_for_timeout(20) or held)
    page.answered(lambda: page.tab.fill("#q", "quick"))
    quick = page.ids()
    for route in held:
        with contextlib.suppress(Exception):  # the page has given it up
            route.continue_()
    page.tab.wait_for_timeout(300)
    assert page.ids() == quick
    assert sum("slow" in (request.post_data or "") and request.failure is not None for request in page.asked) == len(
        held
    )


@full
def test_typing_asks_once_and_retyping_not_at_all(page):
    page.open()
    before = len(page.asked)
    typed = """async (field) => {
      for (const value of ["d", "do", "dog"]) {
        field.value = value;
        field.dispatchEvent(new Event("input"));
        await new Promise((next) => setTimeout(next, 5));
      }
    }"""
    page.answered(lambda: page.tab.eval_on_selector("#q", typed))
    assert sum(request.url.endswith("/search") for request in page.asked[before:]) == 1
    page.answered(lambda: page.tab.fill("#q", "cat"))
    before = len(page.asked)
    page.tab.fill("#q", "dog")
    page.until("document.title === 'dog · dualenc'")
    page.tab.wait_for_timeout(300)
    assert not any(request.url.endswith("/search") for request in page.asked[before:])


@full
def test_more_and_less_like_a_hit_and_their_weights(page):
    page.open("?q=dog")
    first, second = page.ids()[:2]
    card = page.tab.locator(".card").nth(0)
    card.hover()
    sent = page.answered(lambda: card.locator(".act.more").click())
    assert sent["terms"] == [{"weight": 1, "text": "dog"}, {"weight": 1, "id": str(first)}]
    place = page.ids().index(second)
    page.tab.locator(".card .open").nth(place).focus()
    sent = page.answered(lambda: page.tab.keyboard.press("-"))
    assert sent["terms"][2] == {"weight": -0.5, "id": str(second)}
    chip = page.tab.locator(".chip.minus")
    assert "less like" in chip.inner_text()
    sent = page.answered(lambda: (chip.locator("input").fill("-2"), chip.locator("input").press("Enter")))
    assert sent["terms"][2]["weight"] == -2
    sent = page.answered(lambda: page.tab.get_by_label("More weight (now 1)").click())
    assert sent["terms"][1]["weight"] == 1.25
    assert query(page)["term"] == [f"1.25*id:{first}", f"-2*id:{second}"]
    sent = page.answered(lambda: page.tab.get_by_label(f"Remove item {first}").click())
    assert [term.get("id") for term in sent["terms"]] == [None, str(second)]
    page.tab.fill("#q", "night")
    sent = page.answered(lambda: page.tab.press("#q", "Shift+Enter"))
    assert sent["terms"][-1] == {"weight": 1, "text": "night"} and page.tab.input_value("#q") == ""


@full
def test_pictures_are_chosen_pasted_and_dropped(page, tmp_path):
    page.open()
    path = tmp_path / "mine.png"
    path.write_bytes(png(colour=(200, 20, 20)))
    sent = page.answered(lambda: page.tab.set_input_files("#file", path))
    assert len(sent["terms"][0]["embedding"]) == 16 and sent["terms"][0]["weight"] == 1
    assert page.tab.locator(".chip canvas").count() == 1
    assert "not part of the link" in page.tab.inner_text("#chips") and query(page) == {}
    event = """(kind) => {
      const data = new DataTransfer();
      data.items.add(new File([Uint8Array.from(atob(PNG), (c) => c.charCodeAt(0))], "two.png", { type: "image/png" }));
      const event = kind === "paste" ? new ClipboardEvent(kind, { clipboardData: data, bubbles: true, cancelable: true })
        : new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true });
      document.body.dispatchEvent(event);
    }""".replace("PNG", json.dumps(base64.b64encode(png(colour=(20, 20, 200))).decode()))
    sent = page.answered(lambda: page.tab.evaluate(event, "paste"))
    assert len(sent["terms"]) == 2
    page.tab.evaluate(event, "dragenter")
    assert page.tab.is_visible("#drop")
    sent = page.answered(lambda: page.tab.evaluate(event, "drop"))
    assert len(sent["terms"]) == 3 and not page.tab.is_visible("#drop")
    page.tab.click("#share")
    page.until("document.getElementById('toast').textContent.includes('without the picture')")
    page.tab.go_back()
    page.until("document.querySelectorAll('.chip.term').length === 2")
    page.tab.reload()
    page.until("document.getElementById('toast').textContent.includes('gone after a reload')")


@full
def test_a_file_that_is_no_picture_is_refused_in_words(chromium, site, tmp_path):
    page = Page(chromium, site[0]).open()
    path = tmp_path / "mine.png"
    path.write_bytes(b"nothing")
    page.tab.set_input_files("#file", path)
    page.tab.wait_for_selector("#notice.alert")
    assert "picture" in page.tab.inner_text("#notice").lower()
    page.tab.get_by_label("Remove mine.png").click()
    page.tab.wait_for_selector("#notice", state="hidden")
    page.close()


@full
def test_filters_and_the_condition_in_sql(chromium, site):
    page = Page(chromium, site[0]).open("?q=dog")
    sent = page.answered(lambda: page.tab.get_by_role("checkbox", name="O'Hara's blue").check())
    assert sent["where"] == "\"colour\" IN ('O''Hara''s blue')"
    assert all(i % 4 == 2 for i in page.ids())
    sent = page.answered(lambda: page.tab.get_by_role("checkbox", name="(none)").check())
    assert {i % 4 for i in page.ids()} == {2, 3}
    sent = page.answered(lambda: page.tab.get_by_label("width from").fill("1200"))
    assert all(i >= 1100 for i in page.ids()) and len(page.ids()) == 50
    assert page.tab.inner_text("#said").startswith("50 hits")
    sent = page.answered(lambda: page.tab.fill("#where", "width < 1210 -- narrow"))
    assert sent["where"].endswith("AND (\nwidth < 1210 -- narrow\n)") and len(page.ids()) == 4
    link = page.tab.url
    page.tab.fill("#where", "widht < 3")
    page.tab.wait_for_selector("#where-trouble:visible")
    assert "there is no column 'widht'; the nearest is width" in page.tab.inner_text("#where-trouble")
    assert len(page.ids()) == 4  # what was found before stays
    again = Page(chromium, site[0])
    again.tab.goto(link)
    again.until("document.querySelectorAll('.card:not(.ghost)').length === 4")
    assert again.tab.get_by_role("checkbox", name="O'Hara's blue").is_checked() and again.tab.input_value(
        "#where"
    ).endswith("narrow")
    again.answered(lambda: again.tab.get_by_role("button", name="Clear all").click())
    assert len(again.ids()) >= 60 and query(again) == {"q": ["dog"]}
    again.answered(lambda: again.tab.fill("#where", "width < 0"))
    again.tab.get_by_role("button", name="Clear the filters").click()
    again.until("document.querySelectorAll('.card').length >= 60")
    again.close()
    page.close()


@full
def test_labels_on_each_hit(page):
    page.open("?q=dog")
    sent = page.answered(lambda: page.tab.fill("#labels", "dog, cat, a child"))
    assert sent["labels"] == ["dog", "cat", "a child"]
    page.until("document.querySelectorAll('.labelled .label b').length >= 60")
    shown = page.tab.locator(".card .label").first.inner_text()
    assert shown.split("\n")[0] in sent["labels"] and shown.endswith("%")
    counts = page.tab.eval_on_selector_all(".tally .n", "all => all.map((n) => Number(n.textContent))")
    assert sum(counts) == len(page.ids())
    assert query(page)["labels"] == ["dog,cat,a child"]


@full
def test_the_lowest_score_cuts_at_once(page):
    page.open("?q=dog")
    before = len(page.ids())
    scores = page.tab.eval_on_selector_all(".card", "cards => cards.map((card) => card.hit.score)")
    asked = len(page.asked)
    page.tab.eval_on_selector(
        "#least", "(field, at) => { field.value = at; field.dispatchEvent(new Event('input')); }", scores[9]
    )
    least = float(query(page)["least"][0])
    page.until("document.querySelectorAll('.card').length < 60")
    assert page.tab.locator(".card").count() == sum(score >= least for score in scores) < before
    assert not any(request.url.endswith("/search") for request in page.asked[asked:])
    page.tab.get_by_label("Remove: score at least").click()
    page.until("document.querySelectorAll('.card').length >= 60")


@full
def test_back_and_forward_with_an_open_item(page):
    page.open("?q=dog")
    dog = page.ids()
    page.answered(lambda: page.tab.fill("#q", "cat"))
    cat = page.ids()
    page.tab.locator(".card .open").nth(2).click()
    page.tab.wait_for_selector("#detail[open] .similar img")
    assert query(page) == {"q": ["cat"], "item": [str(cat[2])]}
    page.tab.keyboard.press("ArrowRight")
    page.until("location.search.includes('item=' + value)", cat[3])
    page.tab.keyboard.press("Escape")
    page.tab.wait_for_selector("#detail", state="hidden")
    page.until("document.activeElement.closest('.card')?.hit.id === value", str(cat[3]))
    page.tab.go_back()
    page.until("document.getElementById('q').value === 'dog'")
    assert page.ids()[:60] == dog[:60]
    page.tab.go_forward()
    page.until("document.getElementById('q').value === 'cat'")
    assert page.ids()[:60] == cat[:60]


@full
def test_the_page_by_keyboard(page):
    page.open("?q=dog")
    page.tab.locator("h1").click()
    page.tab.keyboard.press("/")
    assert page.tab.evaluate("document.activeElement.id") == "q"
    page.tab.keyboard.press("ArrowDown")
    ids = page.ids()
    focused = "Number(document.activeElement.closest('.card')?.hit.id)"
    assert page.tab.evaluate(focused) == ids[0]
    columns = page.tab.evaluate(
        "getComputedStyle(document.getElementById('grid')).gridTemplateColumns.split(' ').length"
    )
    page.tab.keyboard.press("ArrowRight")
    page.tab.keyboard.press("ArrowDown")
    assert page.tab.evaluate(focused) == ids[1 + columns]
    assert page.tab.locator('.card .open[tabindex="0"]').count() == 1
    page.tab.keyboard.press("Enter")
    page.tab.wait_for_selector("#detail[open]")
    page.tab.keyboard.press("Escape")
    page.tab.wait_for_selector("#detail", state="hidden")
    page.tab.keyboard.press("?")
    assert page.tab.is_visible("#help") and "Shift" in page.tab.inner_text("#help")
    page.tab.keyboard.press("Escape")
    assert not page.tab.is_visible("#help")
    page.tab.keyboard.press("f")
    assert not page.tab.is_visible("#panel") and page.tab.get_attribute("#refine", "aria-expanded") == "false"


@full
def test_a_thousand_hits_by_scrolling(page, record_property):
    page.open("?q=dog")
    frames = page.tab.evaluate("""async () => {
      const times = []; let last = performance.now();
      const cards = () => document.querySelectorAll(".card:not(.ghost)").length;
      while (cards() < 1000 && times.length < 3000) {
        scrollBy(0, 200);
        await new Promise(requestAnimationFrame);
        times.push(performance.now() - last); last = performance.now();
      }
      times.sort((one, other) => one - other);
      return { frames: times.length, median: times[times.length >> 1], p95: times[Math.floor(times.length * 0.95)] };
    }""")
    record_property("frames_ms", json.dumps(frames))
    page.tab.wait_for_timeout(500)
    ids = page.ids()
    assert 1000 <= len(ids) < 1150 and len(set(ids)) == len(ids)
    assert page.tab.is_visible("#more button")
    page.answered(lambda: page.tab.click("#more button"))
    assert page.tab.evaluate("window.shifted") < 0.1


@full
def test_another_index_and_one_without_encoder_or_pictures(page):
    page.open("?q=dog&is.colour=red")
    page.answered(lambda: page.tab.press("#q", "Escape"))
    page.answered(lambda: page.tab.select_option("#index", "bare"))
    page.tab.wait_for_selector(".grid.texts .card.wordy")
    assert query(page) == {"index": ["bare"]}
    assert page.tab.get_attribute("#q", "placeholder") == "This index has no encoder: search by its own items"
    assert "40 items" in page.tab.inner_text("#facts")
    ids = page.ids()
    page.tab.locator(".card .open").first.focus()
    sent = page.answered(lambda: page.tab.keyboard.press("+"))
    assert sent["terms"] == [{"weight": 1, "id": str(ids[0])}] and page.ids()[0] == ids[0]


@full
def test_it_waits_for_the_encoder_and_for_the_server(chromium, site):
    page = Page(chromium, site[0]).open()
    problem = json.dumps({"title": "Encoder loading", "detail": "it is still loading", "status": 503})
    kind = {"content_type": "application/problem+json", "headers": {"Retry-After": "1"}}
    page.tab.route("**/search", lambda route: route.fulfill(status=503, body=problem, **kind))
    page.tab.fill("#q", "dog")
    page.tab.wait_for_selector("#notice.wait")
    assert "starts by itself" in page.tab.inner_text("#notice")
    page.tab.unroute("**/search")
    page.tab.wait_for_selector("#notice", state="hidden")
    page.tab.route("**/search", lambda route: route.abort())
    page.tab.fill("#q", "cat")
    page.tab.wait_for_selector("#notice.offline")
    assert "does not answer" in page.tab.inner_text("#notice") and len(page.ids()) >= 60
    page.tab.unroute("**/search")
    page.tab.wait_for_selector("#notice", state="hidden")
    assert page.tab.input_value("#q") == "cat"
    page.close()


@full
def test_ids_that_no_number_of_javascript_holds(chromium, tmp_path):
    from dualenc.index.index import Index
    from dualenc.serve.app import create_app
    from dualenc.serve.settings import Settings

    first, said = 2**60 + 1, [{"key": f"k{i}", "caption": f"picture {i}"} for i in range(50)]
    Index.build(small_rows(50), tmp_path / "big", ids=np.arange(50) + first, metadata=said, recipe="flat")
    with in_thread(create_app(Settings({"big": tmp_path / "big"}))) as url:
        page = Page(chromium, url).open()
        ids = page.ids()
        assert sorted(ids) == list(range(first, first + 50))
        page.tab.locator(".card .open").first.click()
        page.tab.wait_for_selector("#detail .similar .words")
        caption = f"picture {ids[0] - first}"
        assert query(page) == {"item": [str(ids[0])]} and page.tab.inner_text("#detail-title") == caption
        page.tab.reload()
        page.until("document.getElementById('detail-title')?.textContent === value", caption)
        sent = page.answered(lambda: page.tab.get_by_role("button", name="Search by this").click())
        assert sent["terms"] == [{"weight": 1, "id": str(ids[0])}] and page.ids()[0] == ids[0]
        assert query(page)["term"] == [f"1*id:{ids[0]}"] and page.errors == []
        assert page.open(f"?term=1*id:{ids[0]}").ids()[0] == ids[0]
        page.close()


@full
def test_the_token_is_asked_for_once(chromium, folders):
    from dualenc.serve.app import create_app
    from dualenc.serve.settings import Settings

    with pytest.MonkeyPatch.context() as patch:
        use_fake_encoders(patch)
        with in_thread(create_app(Settings(folders, token="open sesame"))) as url:
            page = Page(chromium, url)
            page.tab.goto(f"{url}/?q=dog")
            page.tab.fill("#token", "wrong")
            page.tab.press("#token", "Enter")
            page.until("document.querySelector('#login .wrong')?.textContent === \"That is not this server's token.\"")
            page.tab.fill("#token", "open sesame")
            page.tab.press("#token", "Enter")
            page.tab.wait_for_selector(".card.loaded")
            page.open("?q=cat")
            assert not page.tab.is_visible("#login")
            page.close()
