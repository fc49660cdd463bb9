"""The application as a whole: health, indexes, the page's files, settings, what starts it."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import threading

import pyarrow as pa
import pytest

from dualenc.serve.columns import column, shown
from dualenc.serve.routes.bodies import reply
from dualenc.serve.settings import VARIABLE, Settings
from tests.serve import fakes
from tests.serve.conftest import DIM, ROWS, problem, served


def test_health(client):
    response = client.get("/healthz")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


def test_ready(client):
    assert client.get("/readyz").json() == {
        "photos": {"rows": ROWS, "generation": 1, "encoder": "ready"},
        "bare": {"rows": 50, "generation": 1, "encoder": "none"},
        "codes": {"rows": 300, "generation": 1, "encoder": "ready"},
    }


def test_not_ready_while_the_encoder_loads_or_when_it_failed(indexes, monkeypatch):
    from fastapi.testclient import TestClient

    from dualenc.serve.app import create_app

    go = threading.Event()

    def load(*_):
        go.wait(20)
        raise ValueError("/secret/place/encoder is damaged")

    monkeypatch.setattr("dualenc.serve.encoders.load", load)
    app = create_app(Settings({"photos": indexes["photos"]}))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        response = client.get("/readyz")
        assert (response.status_code, response.json()["photos"]["encoder"]) == (503, "loading")
        assert response.headers["retry-after"] == "1"
        assert client.get("/indexes").json()[0]["encoder"] == "loading"
        assert client.get("/healthz").status_code == 200
        assert client.post("/search", json={"id": 3}).status_code == 200
        go.set()
        while (response := client.get("/readyz")).json()["photos"]["encoder"] == "loading":
            pass
        assert (response.status_code, response.json()["photos"]["encoder"]) == (503, "failed")
        assert "secret" not in response.text


def test_indexes(client):
    photos, bare, codes = client.get("/indexes").json()
    assert {name: value for name, value in photos.items() if name not in ("columns", "bytes")} == {
        "name": "photos",
        "rows": ROWS,
        "dim": DIM,
        "kind": "flat",
        "recall": 1.0,
        "recall_at": 10,
        "exact": True,
        "generation": 1,
        "fingerprint": fakes.FINGERPRINT,
        "encoder": "ready",
        "images": True,
        "labels": True,
    }
    assert photos["bytes"] > ROWS * DIM * 4
    assert (bare["encoder"], bare["images"], bare["labels"], bare["columns"]) == ("none", False, False, [])
    assert (codes["exact"], codes["labels"], codes["kind"]) == (False, False, "ivf")


def test_columns(client):
    columns = {one["name"]: one for one in client.get("/indexes").json()[0]["columns"]}
    assert not {"image_path", "image_offset", "image_size"} & set(columns)
    assert columns["colour"]["type"] == "text"
    assert sorted(columns["colour"]["values"]) == [["blue", 8], ["green", 8], ["red", 8]]
    assert columns["objects"]["type"] == "number"
    assert columns["objects"]["values"][0][1] >= columns["objects"]["values"][-1][1]
    assert sorted(columns["objects"]["values"]) == [[0, 6], [1, 5], [2, 6], [3, 6]]
    assert (columns["objects"]["min"], columns["objects"]["max"]) == (0, 3)
    assert columns["good"] == {
        "name": "good",
        "type": "boolean",
        "values": [[True, 12], [False, 12]],
        "min": None,
        "max": None,
    }
    assert columns["taken"]["type"] == "time"
    assert columns["taken"]["min"].startswith("2026-01-01")
    assert columns["taken"]["max"].startswith("2026-01-24")
    assert (columns["share"]["min"], columns["share"]["max"]) == (0.0, 23 / 8)
    assert [value for value, _ in columns["share"]["values"]].count(None) == 0
    for name in ("key", "caption"):
        assert (columns[name]["type"], columns[name]["values"]) == ("text", None)
    assert columns["captions"]["type"] == columns["raw"]["type"] == "other"


@pytest.mark.parametrize(
    ("values", "kind", "listed"),
    [
        (pa.array([f"v{i}" for i in range(50)]), "text", 50),
        (pa.array([f"v{i}" for i in range(51)]), "text", None),
        (pa.array(["a", "b", None]).dictionary_encode(), "text", 2),
        (pa.array([1, 2, 2], pa.int8()), "number", 2),
        (pa.array([None, None], pa.int64()), "number", 0),
        (pa.array([], pa.string()), "text", 0),
        (pa.array([0.5, 1, float("inf"), float("nan")], pa.float16()), "number", 2),
        (pa.array([1, 2], pa.decimal128(5, 2)), "number", 2),
        (pa.array([1, 2], pa.date32()), "time", 2),
        (pa.array([1, 2], pa.duration("s")), "other", None),
        (pa.array([[1], [2]]), "other", None),
        (pa.array([{"a": 1}]), "other", None),
        (pa.nulls(3), "other", None),
        (pa.array([b"\xff"]), "other", None),
    ],
)
def test_columns_of_all_types(values, kind, listed):
    about = column("name", pa.chunked_array([values]))
    assert about["type"] == kind
    assert (None if about["values"] is None else len(about["values"])) == listed
    json.loads(reply(about).body)


def test_values_over_several_steps(monkeypatch):
    monkeypatch.setattr("dualenc.serve.columns.STEP", 10)
    assert column("a", pa.chunked_array([pa.array([i % 3 for i in range(35)])]))["values"] == [
        [0, 12],
        [1, 12],
        [2, 11],
    ]
    assert column("a", pa.chunked_array([pa.array([i // 7 for i in range(700)])]))["values"] is None


def test_values_that_python_cannot_hold():
    raw = pa.array([b"\xffx", None], pa.binary())  # bytes that are no UTF-8, as parquet of other programs may bring
    odd = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    table = pa.table(
        {
            "text": odd,
            "list": pa.ListArray.from_arrays([0, 1, 2], odd),
            "fine": pa.array([1, 17], pa.timestamp("ns")),
            "late": pa.array([2**45, 0], pa.timestamp("s")),
            "plain": pa.array([1, 2]),
        }
    )

    class Odd:
        metadata = table

        def rows(self, ids):
            return table

    first, second = shown(Odd(), [0, 1])[0]
    assert (first["text"], second["text"], first["list"], first["plain"]) == ("\ufffdx", None, None, 1)
    assert first["fine"].endswith("00:00:00.000000001")
    assert isinstance(first["late"], str)
    for name in table.column_names:
        about = column(name, table[name])
        json.loads(reply(about).body)
        assert (about["values"] is None) == (name not in ("fine", "plain")), name


def test_types_that_json_has_no_form_for():
    value = {
        "range": range(2),
        "time": datetime.time(1),
        "span": datetime.timedelta(1),
        "bytes": b"\xff",
        "nan": float("nan"),
    }
    told = json.loads(reply(value).body)
    assert (told["range"], told["time"], told["nan"]) == ("range(0, 2)", "01:00:00", None)


def test_the_page(client):
    response = client.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert client.head("/").status_code == 200
    problem(client.post("/"), 405)
    problem(client.get("/page/"), 404)
    for path in ("/..%2fapp.py", "/%2e%2e%2fapp.py", "/app.py", "//etc/passwd", "/index.html%2f..", "/static"):
        problem(client.get(f"http://127.0.0.1{path}"), 404)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/search", 405),
        ("POST", "/healthz", 405),
        ("DELETE", "/items/3", 405),
        ("GET", "/search/", 404),
        ("GET", "/items/", 404),
        ("PATCH", "/embed", 405),
    ],
)
def test_other_paths_and_methods(client, method, path, status):
    problem(client.request(method, path), status)


def test_an_index_that_grows_is_seen(indexes, tmp_path, monkeypatch):
    import shutil
    import time

    from dualenc.index.index import Index
    from tests.serve.pictured import unit_rows

    folder = tmp_path / "photos"
    shutil.copytree(indexes["photos"], folder)
    with served({"photos": folder}, monkeypatch) as client:
        assert client.get("/indexes").json()[0]["rows"] == ROWS
        Index.open(folder).add(unit_rows(3, seed=9), metadata=[{"key": f"n{i}", "colour": "violet"} for i in range(3)])
        while (about := client.get("/indexes").json()[0])["generation"] == 1:
            time.sleep(0.05)
        assert about["rows"] == ROWS + 3
        colours = next(one for one in about["columns"] if one["name"] == "colour")
        assert ["violet", 3] in colours["values"]
        hit = client.post("/search", json={"id": ROWS, "k": 1}).json()
        assert (hit["generation"], hit["hits"][0]["metadata"]["colour"], hit["hits"][0]["image"]) == (2, "violet", None)


class TestSettings:
    """Settings as one value, and as JSON."""

    def test_there_and_back(self, tmp_path):
        settings = Settings(
            {"a": tmp_path, "b": tmp_path / "b"},
            host="::1",
            port=0,
            token="x y",
            cors=("http://a",),
            rate=2.5,
            log="json",
        )
        assert Settings.from_json(settings.to_json()) == settings
        assert list(Settings.from_json(settings.to_json()).indexes) == ["a", "b"]

    def test_defaults(self):
        settings = Settings.from_json('{"indexes": {"a": "x"}}')
        assert settings == Settings({"a": "x"})
        assert (settings.host, settings.port, settings.token, settings.cors) == ("127.0.0.1", 8000, None, ())

    def test_no_log_shows_the_token(self, tmp_path):
        assert "secret" not in repr(Settings({"a": tmp_path}, token="secret"))

    @pytest.mark.parametrize(
        "values",
        [
            {"indexes": {}},
            {"indexes": {"": "x"}},
            {"indexes": {"a\n": "x"}},
            {"indexes": {"a": "x"}, "workers": 0},
            {"indexes": {"a": "x"}, "workers": True},
            {"indexes": {"a": "x"}, "threads": 0},
            {"indexes": {"a": "x"}, "port": 70000},
            {"indexes": {"a": "x"}, "max_body": 10},
            {"indexes": {"a": "x"}, "rate": 0},
            {"indexes": {"a": "x"}, "rate": float("nan")},
            {"indexes": {"a": "x"}, "token": ""},
            {"indexes": {"a": "x"}, "token": " a"},
            {"indexes": {"a": "x"}, "token": "é"},
            {"indexes": {"a": "x"}, "precision": "float64"},
            {"indexes": {"a": "x"}, "log": "xml"},
        ],
    )
    def test_values_that_cannot_be(self, values):
        with pytest.raises(ValueError):
            Settings(**values)

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"indexes": {"a": "x"}, "prot": 1}', "null"])
    def test_json_that_is_none(self, text):
        with pytest.raises(ValueError, match="settings"):
            Settings.from_json(text)

    def test_from_the_environment(self, indexes, monkeypatch):
        from dualenc.serve.app import from_environment

        monkeypatch.delenv(VARIABLE, raising=False)
        with pytest.raises(ValueError, match=VARIABLE):
            from_environment()
        monkeypatch.setenv(VARIABLE, Settings(indexes).to_json())
        assert list(from_environment().state.service.lives) == list(indexes)

    def test_an_index_that_is_none(self, tmp_path):
        from dualenc.serve.app import create_app

        with pytest.raises((ValueError, OSError)):
            create_app(Settings({"a": tmp_path}))


def test_the_application_imports_no_torch():
    code = "import sys, dualenc.serve.app; sys.exit(bool({'torch', 'open_clip', 'dualenc.model.encoder'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
