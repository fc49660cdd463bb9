"""GET /items/{id}, its image's address, and /items/{id}/similar."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from dualenc.index.index import Index
from tests.serve.conftest import ROWS, photo_rows, problem


def ids(response):
    assert response.status_code == 200, response.text
    return [hit["id"] for hit in response.json()["hits"]]


def nearest(indexes, number, **options):
    """Ids of all rows but one, nearest to it first, as the index finds them."""
    group_by = options.pop("group_by", None)
    index = Index.open(indexes["photos"])
    found = [i for i in index.page(photo_rows()[number][None], ROWS, **options)[0][0].tolist() if i not in (-1, number)]
    if group_by is None:
        return found
    groups = index.rows(found)[group_by].to_pylist()
    return [i for place, i in enumerate(found) if groups[place] not in groups[:place]]


def test_an_item(client):
    item = client.get("/items/3").json()
    assert set(item) == {"id", "image", "metadata"}
    assert (item["id"], item["image"]) == (3, "/items/3/image?index=photos")
    assert item["metadata"]["caption"] == "a yellow picture number 3"
    assert not {"image_path", "image_offset", "image_size"} & set(item["metadata"])


def test_the_address_of_its_image_is_answered(client):
    response = client.get(client.get("/items/3").json()["image"])
    assert response.status_code == 200
    assert Image.open(io.BytesIO(response.content)).size == (32, 32)


def test_an_item_without_metadata(client):
    assert client.get(f"/items/{2**60}?index=bare").json() == {"id": 2**60, "image": None, "metadata": {}}


@pytest.mark.parametrize("end", ["", "/similar"])
@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("99", 404, "99"),
        ("-1", 422, "id"),
        (str(2**63 - 1), 404, "no such"),
        (str(2**63), 422, "id"),
        ("9" * 5000, 422, "id"),
        ("abc", 422, "id"),
        ("1.5", 422, "id"),
        ("%00", 422, "id"),
        ("%ff", 422, "id"),
        ("NaN", 422, "id"),
        ("..%2f..%2fetc%2fpasswd", 404, "path"),
    ],
)
def test_ids_that_are_none(client, path, end, status, words):
    problem(client.get(f"/items/{path}{end}"), status, words)


@pytest.mark.parametrize("end", ["", "/similar"])
@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("index=nowhere", 404, "nowhere"),
        ("indx=photos", 422, "indx"),
        ("index=%ff", 404, "index"),
        ("index=", 404, "index"),
    ],
)
def test_queries_that_are_none(client, end, query, status, words):
    problem(client.get(f"/items/3{end}?{query}"), status, words)


def test_similar_leaves_the_item_out(client, indexes):
    for number in (0, 5, 23):
        assert ids(client.get(f"/items/{number}/similar?k={ROWS}")) == nearest(indexes, number)


def test_an_equal_row_is_similar(client):
    assert ids(client.get("/items/0/similar?k=1")) == [23]
    assert ids(client.get("/items/23/similar?k=1")) == [0]


def test_pages_of_similar_meet(client, indexes):
    offset, seen = 0, []
    while offset is not None:
        reply = client.get("/items/5/similar", params={"k": 6, "offset": offset, "where": "key <> 's023'"}).json()
        seen += [hit["id"] for hit in reply["hits"]]
        offset = reply["next_offset"]
    assert seen == [i for i in nearest(indexes, 5) if i != 23]


def test_the_last_page_of_similar_says_so(client):
    assert client.get(f"/items/5/similar?k={ROWS - 1}").json()["next_offset"] is None
    assert client.get(f"/items/5/similar?k={ROWS - 2}").json()["next_offset"] == ROWS - 2


def test_similar_under_a_filter(client, indexes):
    for options in ({"where": "colour = 'red'"}, {"threshold": 0.1}, {"group_by": "colour"}):
        got = ids(client.get("/items/4/similar", params={"k": ROWS, **options}))
        assert got == nearest(indexes, 4, **options)


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("k=0", 422, "k"),
        ("k=1001", 422, "1000"),
        ("k=a", 422, "k"),
        ("offset=-1", 422, "offset"),
        ("offset=1000000000", 422, "offset"),
        ("threshold=nan", 422, "threshold"),
        ("threshold=inf", 422, "threshold"),
        ("where=nocolumn%3D1", 400, "nocolumn"),
        ("where=%ff", 400, "where"),
        ("where=image_path%20%3E%20%27a%27", 400, "server keeps its files"),
        ("group_by=image_path", 400, "server keeps its files"),
        ("group_by=nocolumn", 400, "nocolumn"),
        ("q=a", 422, "q"),
    ],
)
def test_similar_refuses(client, query, status, words):
    problem(client.get(f"/items/3/similar?{query}"), status, words)


def test_similar_needs_the_rows(client):
    problem(client.get("/items/3/similar?index=codes"), 409, "original rows")


def test_similar_needs_no_encoder(client):
    assert len(ids(client.get(f"/items/{2**60 + 3}/similar?index=bare"))) == 10


def test_an_item_leaves_its_group_to_the_next_best(client, indexes):
    for number in range(3):
        got = ids(client.get(f"/items/{number}/similar", params={"k": ROWS, "group_by": "colour"}))
        assert got == nearest(indexes, number, group_by="colour")
        assert len(got) == 3 and any(i % 3 == number for i in got)
