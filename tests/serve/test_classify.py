"""POST /classify and POST /embed."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from dualenc.images import decode
from tests.serve.conftest import problem
from tests.serve.fakes import FINGERPRINT, fake_row
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
