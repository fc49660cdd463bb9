"""clip-retrieval's own web page, as its wheel brings it, in Chromium against this server."""

from __future__ import annotations

import functools
import http.server
import json
import os
import subprocess
import threading
from pathlib import Path

import pytest

from dualenc.index.index import Index
from dualenc.serve.settings import Settings
from tests.serve import fakes
from tests.serve.clip_retrieval import record
from tests.serve.running import in_thread

CHROMIUM = Path("/usr/bin/chromium")
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
WHERE = 'import importlib.util; print(importlib.util.find_spec("clip_retrieval").submodule_search_locations[0])'


class Page(http.server.SimpleHTTPRequestHandler):
    """The page's files, and the config.json that names the server to ask."""

    backend = ""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if not self.path.startswith("/config.json"):
            super().do_GET()
            return
        body = json.dumps({"defaultBackend": self.backend, "defaultIndex": "", "urlColumn": "url"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Our server's URL and the page's, which is of another origin."""
    python = os.environ.get("CLIP_RETRIEVAL_PYTHON")
    if not python:
        pytest.skip("CLIP_RETRIEVAL_PYTHON names no Python that has clip-retrieval (`pip install --no-deps`)")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not there")
    from dualenc.serve.app import create_app

    fakes.use_fake_encoders(monkeypatch)
    metadata = [{name: row[name] for name in ("image_path", "caption")} for row in record.metadata(tmp_path)]
    index = tmp_path / "index"
    Index.build(record.rows(), index, metadata=metadata, recipe="flat", encoder=fakes.FINGERPRINT)
    (tmp_path / "photo.jpg").write_bytes(record.PHOTO)
    package = subprocess.run([python, "-c", WHERE], capture_output=True, text=True, check=True, timeout=60)
    build = Path(package.stdout.strip()).parent / "front" / "build"
    app = create_app(Settings({"main": index, "second": index}, encoder="fake", cors=("*",)))
    page = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Page, directory=str(build)))
    threading.Thread(target=page.serve_forever).start()
    try:
        with in_thread(app) as url:
            monkeypatch.setattr(Page, "backend", f"{url}/")  # with the slash that people leave there
            yield url, f"http://127.0.0.1:{page.server_port}/"
    finally:
        page.shutdown()
        page.server_close()


@pytest.mark.full
def test_the_front_end_finds_and_shows_pictures(served, tmp_path):
    from playwright.sync_api import expect, sync_playwright

    url, front = served
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", *QUIET]
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=options)
        page = browser.new_page(viewport={"width": 1000, "height": 800})
        broken, answers = [], []
        page.on("pageerror", lambda error: broken.append(str(error)))
        page.on("response", lambda reply: answers.append((reply.url, reply.status)) if url in reply.url else None)
        page.goto(front)
        expect(page.locator("option[value=second]")).to_have_count(1)  # it read /indices-list
        page.locator("#searchBar").fill("red")
        page.locator("#searchBar").press("Enter")
        expect(page.locator("figure")).to_have_count(9)  # 12 less 3 that are alike
        assert "photo 1" in page.locator("figcaption").all_inner_texts()
        widths = page.locator("img.pic").evaluate_all("all => all.map(each => each.naturalWidth)")
        assert sum(width > 0 for width in widths) >= 8  # all but the lost one
        page.locator("#filechooser").set_input_files(tmp_path / "photo.jpg")
        page.wait_for_function("count => document.querySelector('clip-front').lastSearch === 'image'", arg=0)
        expect(page.locator("figure")).to_have_count(9)
        browser.close()
    assert not broken
    assert {status for _, status in answers} == {200} and sum("knn-service" in address for address, _ in answers) >= 2
    assert any("/metadata" in address for address, _ in answers)
