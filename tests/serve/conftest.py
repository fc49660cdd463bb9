"""A server in this process over tiny indexes, with an encoder that needs no torch."""

from __future__ import annotations

import contextlib
import datetime
import time

import numpy as np
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient

from dualenc.index.index import Index
from dualenc.serve.settings import Settings
from tests.serve.fakes import FakeEncoder, use_fake_encoders
from tests.serve.pictured import metadata_of, unit_rows
from tests.small import write_shards

ROWS, DIM = 24, 16
CODES = {"build": {"kind": "ivf", "nlist": 1, "codes": "sq8"}, "search": {"nprobe": [1], "rerank": "none"}}


def photo_rows():
    """(24, 16) unit rows; row 0 is there twice, as row 23."""
    rows = unit_rows(ROWS, seed=1)
    rows[23] = rows[0]
    return rows


def photo_metadata(folder):
    """Metadata of 24 pictures in two shards, with a column of each type that filters know and of some they do not."""
    table = metadata_of(write_shards(folder, ROWS))
    start = datetime.datetime(2026, 1, 1)
    more = {
        "colour": pa.array([("red", "green", "blue")[i % 3] for i in range(ROWS)]),
        "objects": pa.array([None if i == 5 else i % 4 for i in range(ROWS)]),
        "good": pa.array([i % 2 == 0 for i in range(ROWS)]),
        "taken": pa.array([start + datetime.timedelta(days=i) for i in range(ROWS)]),
        "share": pa.array([float("nan") if i == 7 else i / 8 for i in range(ROWS)]),
        "raw": pa.array([bytes([255, i]) for i in range(ROWS)]),
        "script": pa.array(["<script>alert(1)</script>"] * ROWS),
    }
    for name, column in more.items():
        table = table.append_column(name, column)
    return table


@pytest.fixture(scope="session")
def indexes(tmp_path_factory):
    """Folders of indexes: `photos` with all there is, `bare` of vectors alone, `codes` without original rows."""
    folder = tmp_path_factory.mktemp("indexes")
    Index.build(
        photo_rows(),
        folder / "photos",
        metadata=photo_metadata(folder / "shards"),
        recipe="flat",
        encoder=FakeEncoder(),
    )
    Index.build(unit_rows(50, seed=2), folder / "bare", ids=np.arange(50) + 2**60, recipe="flat")
    Index.build(unit_rows(300, seed=3), folder / "codes", recipe=CODES, recall=0.01, encoder=FakeEncoder())
    return {name: folder / name for name in ("photos", "bare", "codes")}


@contextlib.contextmanager
def served(indexes, monkeypatch, **settings):
    """A client of a server over these indexes, its encoders loaded."""
    from dualenc.serve.app import create_app

    use_fake_encoders(monkeypatch)
    app = create_app(Settings(indexes, **settings))
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.01)
        yield client


@pytest.fixture(scope="module")
def client(indexes):
    """A client of one server for all tests of a module."""
    with pytest.MonkeyPatch.context() as monkeypatch, served(indexes, monkeypatch) as client:
        yield client


def problem(response, status, *words):
    """Assert that a response is a problem document with this status whose text has these words; returns it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert document["status"] == status
    assert document["title"]
    for word in words:
        assert word in response.text.lower(), (word, response.text)
    assert "/tmp" not in response.text and "Traceback" not in response.text, response.text
    return document
