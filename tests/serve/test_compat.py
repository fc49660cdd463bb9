"""clip-retrieval's addresses: what its own server answered to its clients' requests, and what we answer to them."""

from __future__ import annotations

import base64
import datetime
import inspect
import io
import json
import os
import subprocess

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from dualenc.index.index import Index
from dualenc.serve import compat_reply
from dualenc.serve.alike import first_of_alike
from dualenc.serve.compat_request import MOST
from dualenc.serve.outgoing import as_jpeg, without_remarks
from dualenc.serve.settings import Settings
from tests.serve import fakes
from tests.serve.clip_retrieval import record
from tests.serve.pictured import (
    BLUE,
    RED,
    StandIn,
    app_of,
    built,
    client_of,
    encoded,
    halves,
    metadata_of,
    shard,
    turned,
    unit_rows,
)

EXCHANGES = json.loads(record.RECORDED.read_text())["exchanges"]
GOOD = [name for name, asked in EXCHANGES.items() if asked["status"] == 200]
BAD = [name for name in EXCHANGES if name not in GOOD]
LEAST = {"modality": "image", "num_images": 5, "indice_name": None}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Our index of the rows and the metadata that were recorded, under two names."""
    folder = tmp_path_factory.mktemp("served")
    index = Index.build(record.rows(), folder / "index", metadata=record.metadata(folder), recipe="flat")
    return client_of({"main": index, "second": index}, folder)


def send(client, asked):
    return client.request(asked["method"], asked["path"], content=asked["body"], headers=asked["headers"])


def knn(client, **fields):
    return client.post("/knn-service", content=json.dumps({**LEAST, **fields}))


def refused(response, status, *words):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert all(word in response.json()["detail"] for word in words), response.text
    assert "/tmp" not in response.text and "Error" not in response.text


def without_paths(reply):
    """What was recorded, without where that server's files are: ours does not say."""
    if isinstance(reply, list):
        return [without_paths(one) for one in reply]
    if isinstance(reply, dict):
        return {name: without_paths(one) for name, one in reply.items() if name != "image_path"}
    return reply


def test_the_requests_are_those_that_were_recorded():
    asked = record.exchanges()
    assert len(GOOD) >= 15 and len(BAD) >= 15 and EXCHANGES.keys() == asked.keys()
    for name, exchange in EXCHANGES.items():
        assert {part: exchange[part] for part in ("method", "path", "headers", "body")} == asked[name], name


@pytest.mark.parametrize("name", GOOD)
def test_replies_are_those_of_clip_retrieval(served, name):
    response, recorded = send(served, EXCHANGES[name]), without_paths(EXCHANGES[name]["reply"])
    assert response.status_code == 200 and response.headers["content-type"] == "application/json"
    found = record.shape_of(response.json())
    if not record.by_model(name):
        assert found == recorded
        return
    assert len(found) == len(recorded)  # whatever the query: as many are duplicates
    described = [set(one) - {"image"} for one in found]
    assert described == [set(one) - {"image"} for one in recorded]
    assert all(type(one[field]) is type(recorded[0][field]) for one in found for field in recorded[0] if field in one)


@pytest.mark.parametrize("name", BAD)
def test_what_fails_there_is_refused_here(served, name):
    assert EXCHANGES[name]["status"] in (400, 500) and isinstance(EXCHANGES[name]["reply"], dict)
    response = send(served, EXCHANGES[name])
    assert response.status_code in (400, 404, 415)
    refused(response, response.status_code)


def test_any_content_type_and_a_slash_too_many(served):
    body = json.dumps({**LEAST, "embedding_input": [float(x) for x in record.rows()[1]]})
    wanted = served.post("/knn-service", content=body).json()
    assert [hit["id"] for hit in wanted][:2] == [1, 3]
    for kind in ("application/json", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "odd"):
        assert served.post("/knn-service", content=body, headers={"content-type": kind}).json() == wanted
    assert served.post("http://testserver//knn-service", content=body).json() == wanted
    assert (
        served.get("http://testserver//indices-list").json() == served.get("/indices-list").json() == ["main", "second"]
    )
    assert (
        served.post("http://testserver//metadata", content='{"ids": [1], "indice_name": "main"}').json()[0]["id"] == 1
    )
    assert served.get("/knn-service").status_code == 405


def test_fields_that_cannot_be(served):
    embedding = [float(x) for x in record.rows()[1]]
    for fields, words in (
        ({"num_images": -1}, "num_images"),
        ({"num_images": True}, "num_images"),
        ({"num_images": MOST + 1}, "num_images"),
        ({"num_result_ids": 0}, "num_result_ids"),
        ({"num_result_ids": 2.0}, "num_result_ids"),
        ({"num_result_ids": MOST + 1}, "10,000"),
        ({"modality": "audio"}, "modality"),
        ({"modality": None}, "modality"),
        ({"modality": "text"}, "finds images"),
        ({"indice_name": 3}, "indice_name"),
        ({"text": ["a list"]}, "text"),
        ({"text": "half \ud800"}, "does not parse"),
        ({"image_url": 3}, "image_url"),
        ({"embedding_input": "a text"}, "embedding_input"),
        ({"embedding_input": [[1.0] * 16]}, "list of numbers"),
        ({"embedding_input": [[1.0], 2.0]}, "list of numbers"),
        ({"embedding_input": [{}] * 16}, "list of numbers"),
        ({"embedding_input": [10**400] * 16}, "no number"),
        ({"embedding_input": [0.0] * 16}, "length 0"),
        ({"embedding_input": [float("nan")] * 16}, "length nan"),
        ({"embedding_input": [1e200] * 16}, "length"),
        ({"embedding_input": embedding[:5]}, "5 numbers"),
    ):
        refused(knn(served, **{"embedding_input": embedding, **fields}), 400, words)
    for body in (b"", b"\xff\xfe", b"[" * 100_000, b"3", b'"knn"', b"null"):
        refused(served.post("/knn-service", content=body), 400)
        refused(served.post("/metadata", content=body), 400)
    refused(knn(served, image_url="http://example.test/a.jpg"), 403)


def test_ids_that_cannot_be(served):
    for ids, status in (
        ([-1], 400),
        ([2**63], 400),
        ([1.0], 400),
        (["1"], 400),
        ([True], 400),
        ("12", 400),
        ([12], 404),
    ):
        body = json.dumps({"ids": ids, "indice_name": "main"})
        refused(served.post("/metadata", content=body), status)
    refused(
        served.post("/metadata", content=json.dumps({"ids": [0] * (MOST + 1), "indice_name": "main"})), 400, "10,000"
    )


def test_no_ids_need_no_index(served):
    for body in ('{"ids": []}', '{"ids": [], "indice_name": "none"}'):
        assert served.post("/metadata", content=body).json() == []


def test_null_result_ids_are_as_many_as_images(served):
    assert [set(hit) >= {"id", "caption"} for hit in knn(served, text="red", num_result_ids=None).json()] == [True] * 5


def test_text_goes_before_image_and_image_before_its_address(served):
    photo = base64.b64encode(encoded(halves((30, 20)))).decode()
    service = served.app.state.service
    service.texts_seen.clear()
    service.pictures_seen.clear()
    knn(served, text="red", image=photo)
    assert service.texts_seen == ["red"] and not service.pictures_seen
    found = knn(served, image=photo, image_url="http://example.test/a.jpg", embedding_input=[1.0])
    assert found.status_code == 200 and [picture.size for picture in service.pictures_seen] == [(30, 20)]


def test_pictures_out_of_shards(tmp_path):
    pictures = {
        "plain.jpg": encoded(halves((64, 48)), comment=b"Secret Place"),
        "turned.jpg": turned(halves((64, 48)), 6),
        "other.png": encoded(halves((64, 48)), "PNG"),
        "cut.jpg": encoded(halves((64, 48)))[:300],
    }
    index = built(tmp_path / "index", metadata_of(shard(tmp_path / "000.tar", pictures)))
    client = client_of({"main": index}, tmp_path)
    body = json.dumps({"ids": [0, 1, 2, 3], "indice_name": "main"})
    rows = [row["metadata"] for row in client.post("/metadata", content=body).json()]
    assert [row["key"] for row in rows] == ["plain", "turned", "other", "cut"]
    assert not any(name.startswith("image_") for row in rows for name in row)
    sent = [base64.b64decode(row["image"]) for row in rows[:3]]
    assert all(data.startswith(b"\xff\xd8\xff") and b"Secret" not in data for data in sent)
    for data, size in zip(sent, ((64, 48), (48, 64), (64, 48)), strict=True):
        picture = Image.open(io.BytesIO(data))
        assert picture.size == size and picture.getexif().get(0x0112, 1) == 1
        assert np.abs(np.array(picture.convert("RGB").getpixel((2, 2))) - RED).max() < 12
        assert np.abs(np.array(picture.convert("RGB").getpixel((size[0] - 2, size[1] - 2))) - BLUE).max() < 12
    assert Image.open(io.BytesIO(sent[0])).tobytes() == Image.open(io.BytesIO(pictures["plain.jpg"])).tobytes()
    (tmp_path / "000.tar").unlink()
    gone = [row["metadata"] for row in client.post("/metadata", content=body).json()]
    assert all("image" not in row and row["caption"] for row in gone)


def test_a_jpeg_without_its_remarks():
    picture = halves((64, 48))
    exif = Image.Exif()
    exif[0x010F] = "Secret Camera"
    data = encoded(picture, exif=exif, comment=b"Secret Place", icc_profile=b"a profile " * 9000)
    bare = without_remarks(data)
    assert bare is not None and b"Secret" not in bare and len(bare) < len(data)
    kept = Image.open(io.BytesIO(bare))
    assert kept.info["icc_profile"] == b"a profile " * 9000  # without it the colours would be others
    assert kept.tobytes() == Image.open(io.BytesIO(data)).tobytes()
    for damaged in (
        data[:40],
        b"\xff\xd8\xff\xe0\x00\x00",
        b"\xff\xd8\xff\xe0\xff\xff" + b"x" * 30,
        b"\xff\xd8\xff" * 9,
    ):
        assert without_remarks(damaged) is None
    fill = data[:2] + b"\xff\xff" + data[2:]
    assert without_remarks(fill) == bare
    grey = Image.open(io.BytesIO(as_jpeg(encoded(picture.convert("L")), 1 << 20)))
    assert grey.mode == "L"


def test_metadata_of_every_kind(tmp_path):
    rows = [
        {
            "caption": "a <b> & „c“",
            "url": None,
            "image": "photo.jpg",  # a name, and no picture: the word means the picture here
            "id": 77,
            "similarity": 5.0,
            "bytes": b"caf\xc3\xa9 \xff",
            "when": datetime.datetime(2024, 2, 3, 4, 5),
            "many": ["a", "b"],
            "nothing": float("nan"),
            "large": 2**62,
        },
        {"caption": None, "url": "http://example.test/1.jpg"},
    ]
    client = client_of({"main": built(tmp_path / "index", rows)}, tmp_path)
    first, second = sorted(knn(client, text="red").json(), key=lambda hit: hit["id"])
    assert first["caption"] == rows[0]["caption"] and first["id"] == 0 and first["similarity"] <= 1
    assert "url" not in first and "image" not in first and "caption" not in second  # the front asks for undefined
    assert first["bytes"].startswith("café") and first["when"].startswith("2024-02-03T04:05")
    assert first["many"] == ["a", "b"] and first["nothing"] is None and first["large"] == 2**62


def test_an_index_without_metadata(tmp_path):
    client = client_of({"main": built(tmp_path / "index", None, n=4)}, tmp_path)
    assert all(set(hit) == {"id", "similarity"} for hit in knn(client, text="red").json())
    assert client.post("/metadata", content='{"ids": [2], "indice_name": null}').json() == [{"id": 2, "metadata": {}}]


def test_metadata_is_read_for_the_first_time_in_a_thread(tmp_path):
    client = client_of({"main": built(tmp_path / "index", [{"caption": "a"}])}, tmp_path)
    service, called = client.app.state.service, []

    async def run(function, *arguments):
        called.append(function)
        return function(*arguments)

    service.run = run
    assert knn(client, text="red").json() == knn(client, text="red").json() != []
    assert len(called) == 1


def test_an_index_of_texts_is_asked_by_its_modality(tmp_path):
    index = built(tmp_path / "index", [{"caption": "a"}, {"caption": "b"}], side="text")
    client = client_of({"main": index}, tmp_path)
    assert len(knn(client, text="red", modality="text").json()) == 2
    refused(knn(client, text="red"), 400, "finds texts")


def test_codes_alone_are_not_deduplicated(served, monkeypatch):
    def codes(self, ids):
        raise ValueError("the index holds codes without their original rows")

    monkeypatch.setattr(Index, "vectors", codes)
    assert len(knn(served, text="red", num_images=12, deduplicate=True).json()) == 12


def test_nothing_found_is_an_empty_list(tmp_path):
    index = built(tmp_path / "index", [{"caption": "a"}])
    client = client_of({"main": index}, tmp_path)
    client.app.state.service.search = lambda *given: _nothing()
    assert knn(client, text="red", deduplicate=True).content == b"[]"


async def _nothing():
    return np.zeros(0, np.int64), np.zeros(0, np.float32)


def test_long_replies_come_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(compat_reply, "BATCH", 16)
    rows = [{"caption": f"caption {i}", "key": str(i)} for i in range(200)]
    client = client_of({"main": built(tmp_path / "index", rows)}, tmp_path)
    response = knn(client, text="red", num_images=150, num_result_ids=180)
    assert "content-length" not in response.headers
    hits = response.json()
    assert len(hits) == 180 and all(hit["caption"] == f"caption {hit['id']}" for hit in hits[:150])
    assert all(set(hit) == {"id", "similarity"} for hit in hits[150:])
    scores = [hit["similarity"] for hit in hits]
    assert scores == sorted(scores, reverse=True)
    body = json.dumps({"ids": [*range(199, -1, -1), 5000], "indice_name": "main"})
    refused(client.post("/metadata", content=body), 404, "5000")  # before the first piece


def slow_first_of_alike(rows, threshold):
    """Walk from each row over all that hang on to it; the first of each walk stays."""
    close = rows @ rows.T > threshold
    stays, seen = np.zeros(len(rows), bool), set()
    for start in range(len(rows)):
        if start in seen:
            continue
        stays[start], waiting = True, [start]
        while waiting:
            row = waiting.pop()
            if row not in seen:
                seen.add(row)
                waiting += np.flatnonzero(close[row]).tolist()
    return stays


@pytest.mark.parametrize("seed", range(8))
def test_of_those_that_hang_together_the_first_stays(seed, monkeypatch):
    monkeypatch.setattr("dualenc.serve.alike.BLOCK", 16)
    rng = np.random.default_rng(seed)
    centres = unit_rows(20, seed)
    rows = centres[rng.integers(0, 20, 100)] + rng.standard_normal((100, 16)).astype(np.float32) * 0.1
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    stays = first_of_alike(rows, 0.94)
    assert (stays == slow_first_of_alike(rows, 0.94)).all() and 20 <= stays.sum() < 100


def test_few_rows_are_alike_in_no_trouble():
    row = unit_rows(1)
    assert first_of_alike(row, 0.94).tolist() == [True]
    assert first_of_alike(np.concatenate([row, row, -row]), 0.94).tolist() == [True, False, True]
    assert first_of_alike(np.concatenate([row, row]), 1.5).tolist() == [True, True]


REAL = """
import importlib.util, json, pathlib, sys
package = pathlib.Path(importlib.util.find_spec("clip_retrieval").submodule_search_locations[0])
spec = importlib.util.spec_from_file_location("clip_client", package / "clip_client.py")  # its package needs much else
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
client = module.ClipClient(url=sys.argv[1] + "/knn-service", indice_name="main", num_images=12)
found = [client.query(text="red"), client.query(image=sys.argv[2]), client.query(embedding_input=json.loads(sys.argv[3]))]
print(json.dumps(found))
"""


@pytest.mark.full
def test_the_real_client(tmp_path):
    python = os.environ.get("CLIP_RETRIEVAL_PYTHON")
    if not python:
        pytest.skip(
            "CLIP_RETRIEVAL_PYTHON names no Python that has clip-retrieval (`pip install --no-deps`) and requests"
        )
    from tests.serve.running import in_thread

    index = Index.build(record.rows(), tmp_path / "index", metadata=record.metadata(tmp_path), recipe="flat")
    (tmp_path / "photo.jpg").write_bytes(record.PHOTO)
    app, sent = app_of(StandIn({"main": index}), tmp_path), []

    @app.middleware("http")
    async def listen(request, answer):
        sent.append((request.headers.get("content-type"), json.loads(await request.body())))
        return await answer(request)

    with in_thread(app) as url:
        embedding = json.loads(EXCHANGES["client_embedding"]["body"])["embedding_input"]
        command = [python, "-c", REAL, url, str(tmp_path / "photo.jpg"), json.dumps(embedding)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = [record.shape_of(reply) for reply in json.loads(done.stdout)]
    for name, reply, asked in zip(("client_text", "client_image", "client_embedding"), found, sent, strict=True):
        assert asked == (None, json.loads(EXCHANGES[name]["body"]))
        recorded = without_paths(EXCHANGES[name]["reply"])
        assert len(reply) == len(recorded) and set().union(*reply) == set().union(*recorded)
    assert found[2] == without_paths(EXCHANGES["client_embedding"]["reply"])


def test_the_real_application_answers(tmp_path, monkeypatch):
    from dualenc.serve.app import create_app

    fakes.use_fake_encoders(monkeypatch)
    options = {"metadata": record.metadata(tmp_path), "recipe": "flat", "encoder": fakes.FINGERPRINT}
    Index.build(record.rows(), tmp_path / "index", **options)
    settings = Settings({"main": tmp_path / "index", "second": tmp_path / "index"}, encoder="fake", cors=("*",))
    with TestClient(create_app(settings), base_url="http://localhost", raise_server_exceptions=False) as client:
        for name in ("indices", "client_embedding", "client_text", "client_image", "front_text", "front_metadata"):
            response, recorded = send(client, EXCHANGES[name]), without_paths(EXCHANGES[name]["reply"])
            found = record.shape_of(response.json())
            assert response.status_code == 200 and len(found) == len(recorded)
            assert record.by_model(name) or found == recorded
        refused(send(client, EXCHANGES["bad_index"]), 404)
        front = client.post("/metadata", content=b'{"ids": []}', headers={"origin": "http://front.test"})
        assert front.headers["access-control-allow-origin"] == "*"


def test_the_stand_in_is_called_as_the_service_is():
    from dualenc.serve.service import Service

    for name in ("live", "run", "texts", "images", "search"):
        real, ours = (list(inspect.signature(getattr(kind, name)).parameters) for kind in (Service, StandIn))
        named = [parameter for parameter in ours if parameter != "more"]
        assert real[: len(named)] == named, name
