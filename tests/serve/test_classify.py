"""POST /classify and POST /embed."""

from __future__ import annotations

import asyncio
import base64
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dualenc.images import decode
from tests.serve.conftest import problem, served
from tests.serve.fakes import FINGERPRINT, FakeEncoder, fake_row
from tests.small import png

PNG = png((8, 8), (200, 30, 30))
TEXT = base64.b64encode(PNG).decode()
CLASSES = ["dog", "cat", "horse", "bird"]


def row_of(data):
    return fake_row(decode(data).tobytes(), 16)


def expected(classes, k):
    cosines = np.array([row_of(PNG) @ fake_row(name.encode(), 16) for name in classes], np.float64)
    shares = np.exp(100 * (cosines - cosines.max()))
    shares /= shares.sum()
    return [
        (classes[i], pytest.approx(cosines[i], abs=1e-5), pytest.approx(shares[i], abs=1e-4))
        for i in np.argsort(-cosines)
    ][:k]


def told(response):
    assert response.status_code == 200, response.text
    return [(one["name"], one["score"], one["probability"]) for one in response.json()["classes"]]


def test_a_picture_in_json_and_as_a_file(client):
    assert told(client.post("/classify", json={"image": TEXT, "classes": CLASSES})) == expected(CLASSES, 5)
    query = json.dumps({"classes": CLASSES, "k": 2})
    response = client.post("/classify", files={"image": ("x.png", PNG)}, data={"query": query})
    assert told(response) == expected(CLASSES, 2)


def test_templates_count(client):
    plain = told(client.post("/classify", json={"image": TEXT, "classes": CLASSES}))
    prompted = told(
        client.post("/classify", json={"image": TEXT, "classes": CLASSES, "templates": ["a photo of a {}"]})
    )
    assert plain != prompted
    assert sum(share for *_, share in prompted) == pytest.approx(1)


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ({"image": TEXT}, 422, "classes"),
        ({"image": TEXT, "classes": ["dog"]}, 422, "at least 2"),
        ({"image": TEXT, "classes": ["dog", "dog"]}, 422, "twice"),
        ({"image": TEXT, "classes": "dog,cat"}, 422, "array"),
        ({"image": TEXT, "classes": CLASSES, "k": 0}, 422, "k"),
        ({"image": TEXT, "classes": CLASSES, "templates": ["no place"]}, 422, "place"),
        ({"image": TEXT, "classes": CLASSES, "templates": "imagenet"}, 422, "array"),
        ({"image": TEXT, "classes": CLASSES, "index": "bare"}, 409, "encoder"),
        ({"image": TEXT, "classes": CLASSES, "index": "nowhere"}, 404, "nowhere"),
        ({"classes": CLASSES}, 422, "one picture"),
        ({"image": TEXT, "image_url": "http://example.com/x.png", "classes": CLASSES}, 422, "one picture"),
        ({"image_url": "http://example.com/x.png", "classes": CLASSES}, 403, "url"),
        ({"image": "AAAA", "classes": CLASSES}, 415, "picture"),
        ({"image": "?", "classes": CLASSES}, 400, "base64"),
        ({"image": TEXT, "classes": CLASSES, "text": "a"}, 422, "text"),
    ],
)
def test_classify_refuses(client, query, status, words):
    problem(client.post("/classify", json=query), status, words)


def test_classify_takes_one_file(client):
    query = {"query": json.dumps({"classes": CLASSES})}
    problem(client.post("/classify", files=[("image", PNG)] * 2, data=query), 422, "2 pictures")
    problem(client.post("/classify", files={"image": b""}, data=query), 400, "0 bytes")


def test_embed_texts_and_pictures(client):
    reply = client.post("/embed", json={"texts": ["a", "b", "a"], "images": [TEXT]}).json()
    assert set(reply) == {"fingerprint", "dim", "texts", "images"}
    assert (reply["fingerprint"], reply["dim"]) == (FINGERPRINT, 16)
    assert np.array_equal(np.float32(reply["texts"]), [fake_row(text, 16) for text in (b"a", b"b", b"a")])
    assert np.array_equal(np.float32(reply["images"]), [row_of(PNG)])


def test_embed_files(client):
    other = png((9, 9), (1, 2, 3))
    reply = client.post("/embed", files=[("image", PNG), ("image", other)]).json()
    assert reply["texts"] == []
    assert np.array_equal(np.float32(reply["images"]), [row_of(PNG), row_of(other)])


def test_what_embed_gives_can_be_searched_by(client):
    row = client.post("/embed", json={"texts": ["a red circle"]}).json()["texts"][0]
    by_row, by_text = (
        client.post("/search", json=query).json() for query in ({"embedding": row}, {"text": "a red circle"})
    )
    assert by_row["hits"] == by_text["hits"]


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ({}, 422, "nothing to embed"),
        ({"texts": []}, 422, "nothing to embed"),
        ({"texts": None, "images": []}, 422, "nothing to embed"),
        ({"texts": [""]}, 422, "texts"),
        ({"texts": [1]}, 422, "string"),
        ({"texts": "abc"}, 422, "array"),
        ({"texts": ["a"] * 257}, 422, "256"),
        ({"images": ["AAAA"] * 65}, 422, "64"),
        ({"images": [""]}, 400, "empty"),
        ({"images": ["AAAA"]}, 415, "picture"),
        ({"texts": ["a"], "index": "bare"}, 409, "encoder"),
        ({"texts": ["a"], "model": "x"}, 422, "model"),
    ],
)
def test_embed_refuses(client, query, status, words):
    problem(client.post("/embed", json=query), status, words)


@pytest.fixture
def batches(monkeypatch):
    """How many pictures go through the tower together."""
    sizes, embed = [], FakeEncoder.embed_images

    def counted(self, images):
        sizes.append(len(images))
        return embed(self, images)

    monkeypatch.setattr(FakeEncoder, "embed_images", counted)
    return sizes


def unseen(first, count=16):
    return [png((8, 8), (first, 7, i)) for i in range(count)]


@pytest.mark.parametrize(("most", "together"), [(1 << 20, [8, 8]), (2.5 * 64, [3] * 5 + [1]), (0, [1] * 16)])
def test_pictures_are_embedded_together_as_far_as_there_is_room(indexes, monkeypatch, batches, most, together):
    pictures = unseen(0)
    monkeypatch.setattr("dualenc.serve.app.KEPT", most)
    with served(indexes, monkeypatch) as client:
        reply = client.post("/embed", files=[("image", data) for data in pictures]).json()
        assert client.app.state.pictures.kept == 0
    assert np.array_equal(np.float32(reply["images"]), [row_of(data) for data in pictures])
    assert batches == together


def test_pictures_wait_for_the_encoder_side_by_side(client, monkeypatch):
    images, there = client.app.state.service.images, asyncio.Event()
    waiting = []

    async def wait(*given):
        waiting.append(given)
        if len(waiting) == 4:
            there.set()
        await asyncio.wait_for(there.wait(), 20)
        return await images(*given)

    monkeypatch.setattr(client.app.state.service, "images", wait)
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda data: client.post("/embed", files={"image": data}), unseen(50, 4)))
    assert [reply.status_code for reply in replies] == [200] * 4


def test_pictures_that_were_refused_take_no_room(client):
    problem(client.post("/embed", files=[("image", data) for data in [*unseen(99), b"no picture"]]), 415)
    assert client.app.state.pictures.kept == 0


def test_many_rows_are_written_alike(client, monkeypatch):
    query = {"texts": ["a", "b"], "images": [TEXT]}
    before = client.post("/embed", json=query).json()
    monkeypatch.setattr("dualenc.serve.routes.bodies.MANY", 0)
    assert client.post("/embed", json=query).json() == before
