"""POST /search: what is found by each kind of term, what is refused, and what a reply holds."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from dualenc.index.compose import combine
from dualenc.index.index import Index
from tests.serve.conftest import ROWS, photo_rows, problem
from tests.serve.fakes import fake_row
from tests.small import png

PNG = png((8, 8), (200, 30, 30))


def pixels_row(data):
    from dualenc.images import decode

    return fake_row(decode(data).tobytes(), 16)


def search(client, **query):
    return client.post("/search", json=query)


def found(client, **query):
    response = search(client, **query)
    assert response.status_code == 200, response.text
    return response.json()


def ids(reply):
    return [hit["id"] for hit in reply["hits"]]


@pytest.fixture(scope="module")
def photos(indexes):
    return Index.open(indexes["photos"])


def expected(index, vector, k=10, **options):
    numbers, scores = index.page(vector[None], k, **options)
    return [(int(i), pytest.approx(float(s), abs=1e-6)) for i, s in zip(numbers[0], scores[0], strict=True) if i >= 0]


def pairs(reply):
    return [(hit["id"], hit["score"]) for hit in reply["hits"]]


class TestTerms:
    """One term, of each kind."""

    def test_text(self, client, photos):
        reply = found(client, text="a red circle")
        assert pairs(reply) == expected(photos, fake_row(b"a red circle", 16))

    def test_embedding_is_searched_to_the_bit(self, client, photos):
        for row in photo_rows().astype(np.float16).astype(np.float32):  # not quite of length 1: the index makes them so
            reply = found(client, embedding=row.tolist(), k=ROWS)
            assert [hit["score"] for hit in reply["hits"]] == photos.search(row[None], k=ROWS)[1][0].tolist()

    def test_id(self, client, photos):
        assert pairs(found(client, id=4)) == expected(photos, photo_rows()[4])

    def test_id_beyond_32_bits(self, client):
        assert ids(found(client, index="bare", id=2**60 + 7, k=1)) == [2**60 + 7]

    def test_id_as_digits(self, client):
        """As JavaScript has to send what its numbers cannot hold."""
        big = str(2**60 + 7)
        assert ids(found(client, index="bare", id=big, k=1)) == [2**60 + 7]
        assert ids(found(client, index="bare", terms=[{"id": big, "weight": 2}], k=1)) == [2**60 + 7]

    @pytest.mark.parametrize(
        "id", ["", "-1", "+1", "1.5", " 1", "1_0", "\u0661", "#1", str(2**63), "9" * 5000, True, 1.0]
    )
    def test_ids_that_are_none(self, client, id):
        problem(search(client, id=id), 422, "id")

    def test_image_in_base64(self, client, photos):
        assert pairs(found(client, image=base64.b64encode(PNG).decode())) == expected(photos, pixels_row(PNG))

    def test_image_as_a_file(self, client, photos):
        reply = client.post("/search", files={"image": ("x.png", PNG, "image/png")}).json()
        assert pairs(reply) == expected(photos, pixels_row(PNG))

    def test_image_with_a_query_beside_it(self, client, photos):
        reply = client.post(
            "/search", files={"image": PNG}, data={"query": json.dumps({"k": 2, "where": "good"})}
        ).json()
        assert pairs(reply) == expected(photos, pixels_row(PNG), 2, where="good")

    def test_query_as_a_file(self, client):
        assert len(client.post("/search", files={"query": ("q.json", b'{"text": "x", "k": 2}')}).json()["hits"]) == 2

    def test_expression(self, client, photos):
        vector = combine(np.stack([fake_row(b"red car", 16), fake_row(b"night", 16), photo_rows()[2]]), [2, -1, 0.5])
        assert pairs(found(client, expression='2*"red car" - "night" + 0.5*#2')) == expected(photos, vector)

    def test_a_text_is_a_text_and_names_no_file(self, client, photos):
        text = '"red car" + /etc/passwd.png - "night"'
        assert pairs(found(client, text=text)) == expected(photos, fake_row(text.encode(), 16))


class TestCombined:
    """Several terms, with weights."""

    def test_weights(self, client, photos):
        terms = [{"text": "a"}, {"text": "b", "weight": -0.5}, {"id": 3, "weight": 2}]
        vector = combine(np.stack([fake_row(b"a", 16), fake_row(b"b", 16), photo_rows()[3]]), [1, -0.5, 2])
        assert pairs(found(client, terms=terms)) == expected(photos, vector)

    def test_short_forms_and_terms_add_up(self, client, photos):
        row = photo_rows()[9]
        vector = combine(np.stack([fake_row(b"a", 16), row, photo_rows()[2], fake_row(b"b", 16)]), [1, 1, 1, -2])
        reply = found(client, text="a", embedding=row.tolist(), id=2, terms=[{"text": "b", "weight": -2}])
        assert pairs(reply) == expected(photos, vector)

    def test_one_negative_term_finds_the_opposite(self, client, photos):
        assert pairs(found(client, terms=[{"id": 3, "weight": -1}], k=24)) == expected(photos, -photo_rows()[3], 24)

    def test_uploads_by_number(self, client, photos):
        second = png((9, 9), (20, 30, 200))
        query = {"terms": [{"upload": 1, "weight": -0.5}, {"text": "a"}]}
        files = [("image", PNG), ("image", second)]
        reply = client.post("/search", files=files, data={"query": json.dumps(query)}).json()
        rows = np.stack(
            [pixels_row(second), fake_row(b"a", 16), pixels_row(PNG)]
        )  # the one that no term names: weight 1
        assert pairs(reply) == expected(photos, combine(rows, [-0.5, 1, 1]))

    def test_an_upload_may_be_named_twice(self, client):
        query = {"terms": [{"upload": 0}, {"upload": 0, "weight": 0.5}]}
        assert client.post("/search", files={"image": PNG}, data={"query": json.dumps(query)}).status_code == 200

    @pytest.mark.parametrize(
        ("terms", "words"),
        [
            ([{"id": 1}, {"id": 1, "weight": -1}], "cancel"),
            ([{"id": 1, "weight": 0}], "all weights are 0"),
            ([{"text": "a", "id": 1}], "exactly one"),
            ([{"weight": 2}], "exactly one"),
            ([{}], "exactly one"),
            ([{"text": None}], "exactly one"),
            ([{"upload": 0}], "upload 0"),
            ([{"id": 1}] * 33, "32"),
            ("a", "array"),
            ([["a"]], "object"),
            ([{"text": "a", "wieght": 2}], "wieght"),
        ],
    )
    def test_refused(self, client, terms, words):
        problem(search(client, terms=terms), 422, words)


class TestChoice:
    """Which hits: where, k, offset, threshold, group_by."""

    def test_where_offset_threshold_group_by(self, client, photos):
        vector = fake_row(b"a", 16)
        for options in (
            {"where": "objects = 2 AND good"},
            {"where": "colour = 'red'", "offset": 3},
            {"threshold": 0.1},
            {"group_by": "colour"},
            {"group_by": "colour", "offset": 1, "threshold": -0.5, "where": "objects IS NOT NULL"},
        ):
            assert pairs(found(client, text="a", k=5, **options)) == expected(photos, vector, 5, **options), options

    def test_pages_meet(self, client):
        offset, seen = 0, []
        while offset is not None:
            reply = found(client, text="a", k=7, offset=offset, where="key <> 's023'")  # as good as s000: a tie
            seen += ids(reply)
            offset = reply["next_offset"]
        assert len(seen) == ROWS - 1
        assert len(set(seen)) == ROWS - 1

    def test_the_last_page_says_so(self, client):
        assert found(client, text="a", k=ROWS - 1)["next_offset"] == ROWS - 1
        assert found(client, text="a", k=ROWS)["next_offset"] is None
        assert found(client, text="a", k=1000)["next_offset"] is None
        assert found(client, text="a", threshold=2)["next_offset"] is None

    def test_no_page_is_named_that_would_be_refused(self, client, monkeypatch):
        monkeypatch.setattr("dualenc.serve.routes.hits.MOST_OFFSET", 10)
        assert found(client, text="a", k=7, offset=3)["next_offset"] == 10
        assert found(client, text="a", k=7, offset=4)["next_offset"] is None

    def test_nothing_found(self, client):
        assert found(client, text="a", where="objects = 99")["hits"] == []
        assert found(client, text="a", offset=100_000)["hits"] == []

    @pytest.mark.parametrize(
        ("options", "status", "words"),
        [
            ({"k": 0}, 422, "k"),
            ({"k": 1001}, 422, "1000"),
            ({"k": 10**30}, 422, "k"),
            ({"k": -1}, 422, "k"),
            ({"k": 2.5}, 422, "integer"),
            ({"k": "10"}, 422, "integer"),
            ({"k": True}, 422, "integer"),
            ({"offset": -1}, 422, "offset"),
            ({"offset": 10**18}, 422, "offset"),
            ({"threshold": "high"}, 422, "number"),
            ({"where": "nocolumn = 2"}, 400, "nocolumn"),
            ({"where": "objects = 2; DROP TABLE metadata"}, 400, "where"),
            ({"where": ""}, 400, "where"),
            ({"where": "objects"}, 400, "condition"),
            ({"where": "read_text('/etc/passwd') = ''"}, 400, "where"),
            ({"where": "a" * 200_001}, 422, "where"),
            ({"where": "caption = '\x00'"}, 400, "where"),
            ({"group_by": "nocolumn"}, 400, "nocolumn"),
            ({"index": "nowhere"}, 404, "nowhere"),
            ({"index": ""}, 404, "index"),
            ({"index": "../photos"}, 404, "index"),
            ({"colour": "red"}, 422, "colour"),
        ],
    )
    def test_refused(self, client, options, status, words):
        problem(search(client, text="a", **options), status, words)

    @pytest.mark.parametrize("name", ["image_path", "IMAGE_Offset", "image_size"])
    def test_no_filter_may_ask_where_files_are(self, client, name):
        problem(search(client, text="a", where=f"{name} IS NOT NULL"), 400, "server keeps its files")
        problem(search(client, text="a", where=f"caption = 'x' OR \"{name}\" > '0'"), 400, "server keeps its files")
        problem(search(client, text="a", group_by=name), 400, "server keeps its files")


class TestReply:
    """What a reply holds, and what it must not."""

    def test_fields(self, client):
        reply = found(client, text="a", k=2)
        assert reply["index"] == "photos"
        assert (reply["generation"], reply["rows"], reply["recall"], reply["exact"]) == (1, ROWS, 1.0, True)
        assert set(reply["took_ms"]) == {"total", "embed", "search"}
        assert reply["took_ms"]["total"] >= reply["took_ms"]["search"] > 0
        assert reply["next_offset"] == 2
        hit = reply["hits"][0]
        assert set(hit) == {"id", "score", "image", "metadata"}
        assert hit["image"] == f"/items/{hit['id']}/image?index=photos"

    def test_metadata_of_every_type(self, client):
        metadata = {hit["id"]: hit["metadata"] for hit in found(client, text="a", k=ROWS)["hits"]}
        assert metadata[0]["key"] == "s000"
        assert metadata[0]["captions"] == ["a red picture number 0", "number 0 is red"]
        assert metadata[1]["taken"].startswith("2026-01-02T00:00:00")
        assert (metadata[5]["objects"], metadata[6]["objects"]) == (None, 2)
        assert metadata[7]["share"] is None  # NaN, which JSON has not
        assert metadata[8]["share"] == 1.0
        assert metadata[2]["raw"] == "_wI="
        assert metadata[0]["script"] == "<script>alert(1)</script>"

    def test_no_path_of_the_server(self, client, indexes):
        text = search(client, text="a", k=ROWS, vectors=True).text
        assert "image_path" not in text and "image_offset" not in text and "image_size" not in text
        assert str(indexes["photos"].parent) not in text

    def test_without_metadata(self, client):
        assert found(client, index="bare", id=2**60, k=1)["hits"][0] == {
            "id": 2**60,
            "score": pytest.approx(1, abs=1e-6),
            "image": None,
            "metadata": {},
        }

    def test_an_approximate_index_says_so(self, client):
        reply = found(client, index="codes", text="a")
        assert reply["exact"] is False
        assert 0 < reply["recall"] <= 1

    def test_vectors(self, client):
        hits = found(client, text="a", k=3, vectors=True)["hits"]
        for hit in hits:
            assert np.array_equal(np.float32(hit["vector"]), photo_rows()[hit["id"]])

    def test_many_vectors_are_written_in_a_thread(self, client, monkeypatch):
        query = {"text": "a", "k": ROWS, "vectors": True, "labels": ["dog", "cat"]}
        before, run, called = found(client, **query), client.app.state.service.run, []

        async def recorded(function, *arguments):
            called.append(function.__name__)
            return await run(function, *arguments)

        monkeypatch.setattr("dualenc.serve.routes.bodies.MANY", ROWS * 16 - 1)
        monkeypatch.setattr(client.app.state.service, "run", recorded)
        assert found(client, **query) | {"took_ms": 0} == before | {"took_ms": 0}
        assert "_written" in called

    def test_vectors_that_nobody_has(self, client):
        problem(search(client, index="codes", text="a", vectors=True), 409, "original rows")
        problem(search(client, index="codes", id=3), 409, "original rows")
        problem(search(client, index="codes", id=3000), 404, "3000")


class TestLabels:
    """Zero-shot labels of the hits."""

    def test_each_hit_has_the_best(self, client):
        labels, templates = ["dog", "cat", "bird"], ["a {}", "the {c}"]
        hits = found(client, text="a", k=ROWS, labels=labels, templates=templates)["hits"]
        prompts = [[fake_row(t.format(n, c=n).encode(), 16) for t in templates] for n in labels]
        means = np.mean(prompts, axis=1)
        cosines = photo_rows() @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
        powers = np.exp(100 * cosines.astype(np.float64))
        for hit in hits:
            best = int(cosines[hit["id"]].argmax())
            assert hit["label"] == labels[best]
            assert hit["probability"] == pytest.approx(powers[hit["id"], best] / powers[hit["id"]].sum(), abs=1e-4)
        assert len({hit["label"] for hit in hits}) == 3

    def test_without_templates_the_label_is_the_prompt(self, client):
        plain = found(client, text="a", labels=["dog", "cat"])["hits"]
        assert plain == found(client, text="a", labels=["dog", "cat"], templates=["{}"])["hits"]

    def test_no_hits_need_no_labels(self, client):
        assert found(client, text="a", where="false", labels=["dog", "cat"])["hits"] == []

    @pytest.mark.parametrize(
        ("labels", "templates", "words"),
        [
            (["dog"], None, "at least 2"),
            ([], None, "at least 2"),
            (["dog", "dog"], None, "twice"),
            (["dog", " "], None, "empty"),
            (["dog", 3], None, "string"),
            ([f"{i}" for i in range(201)], None, "200"),
            (["dog", "cat"], ["a photo"], "place"),
            (["dog", "cat"], [], "at least 1"),
            ([f"{i}" for i in range(100)], ["{}" + "!" * i for i in range(50)], "prompts"),
            (["dog", "x" * 501], None, "500"),
        ],
    )
    def test_refused(self, client, labels, templates, words):
        problem(search(client, text="a", labels=labels, templates=templates), 422, words)

    def test_codes_alone_have_none(self, client):
        problem(search(client, index="codes", text="a", labels=["dog", "cat"]), 409, "original rows")

    def test_without_an_encoder_there_are_none(self, client):
        problem(search(client, index="bare", id=2**60, labels=["dog", "cat"]), 409, "encoder")


class TestEmbeddings:
    """Embeddings that are none."""

    @pytest.mark.parametrize(
        "text",
        [
            "[]",
            "[1]",
            "[NaN]",
            "[1, NaN" + ", 0" * 14 + "]",
            "[Infinity" + ", 0" * 15 + "]",
            "[-Infinity" + ", 0" * 15 + "]",
            "[1e400" + ", 0" * 15 + "]",
            "[1e308" + ", 1e308" * 15 + "]",
            "[" + "9" * 400 + ", 0" * 15 + "]",
            "[0" + ", 0" * 15 + "]",
            "[2" + ", 0" * 15 + "]",
            "[1.05" + ", 0" * 15 + "]",
            "[1e-320" + ", 0" * 15 + "]",
            "[1" + ", 0" * 16 + "]",
            '["1"' + ", 0" * 15 + "]",
            "[true" + ", 0" * 15 + "]",
            "[[1" + ", 0" * 15 + "]]",
            "[null" + ", 0" * 15 + "]",
            "1",
            '"abc"',
            "{}",
            "[" + "0," * 70_000 + "0]",
        ],
    )
    def test_refused(self, client, text):
        body = f'{{"embedding": {text}}}'.encode()
        problem(client.post("/search", content=body, headers={"content-type": "application/json"}), 422)

    def test_a_little_off_is_taken(self, client):
        row = photo_rows()[2].astype(np.float16).tolist()
        assert ids(found(client, embedding=row, k=1)) == [2]

    def test_whole_numbers_are_numbers(self, client):
        assert len(found(client, embedding=[1] + [0] * 15)["hits"]) == 10


class TestBodies:
    """Bodies that are none."""

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"null",
            b"[]",
            b"3",
            b'"text"',
            b'{"text": "a"} x',
            b'{"text": "\xff\xfe"}',
            b'{"text": "\\ud800"}',
            b'{"text": "\\udc00x"}',
            b'{"text": ' + b"[" * 100_000,
            b'{"terms": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
            b"\xef\xbb\xbf{}",
            b"\x00",
            '{"text": "a"}'.encode("utf-16"),
            b'{"text": ""}',
            b'{"text": "  \\n"}',
            b'{"text": 3}',
            b'{"text": "' + b"a" * 10_001 + b'"}',
            b'{"k": 3}',
            b"{}",
            b'{"where": "good"}',
            b'{"text": "a", "vectors": 1}',
            b'{"text": "a", "nothing": null}',
            b'{"id": -1}',
            b'{"id": 9223372036854775808}',
            b'{"id": 1.0}',
            b'{"expression": "\\"a\\" + /etc/hosts.png"}',
            b'{"expression": "\\"a\\" + x"}',
            b'{"expression": "#99999999999999999999"}',
        ],
    )
    def test_refused(self, client, body):
        problem(client.post("/search", content=body, headers={"content-type": "application/json"}), 422)

    def test_no_such_id(self, client):
        problem(search(client, id=99), 404, "99")

    @pytest.mark.parametrize(
        "kind",
        [
            "text/plain",
            "application/x-www-form-urlencoded",
            "application/octet-stream",
            "",
            "x",
            "image/png",
            "application/jsonl",
        ],
    )
    def test_other_content_types(self, client, kind):
        headers = {"content-type": kind}
        problem(client.post("/search", content=b'{"text": "a"}', headers=headers), 415, "application/json")

    def test_content_types_are_read_as_people_write_them(self, client):
        for kind in ("application/json; charset=utf-8", "Application/JSON", "application/json;"):
            response = client.post("/search", content=b'{"text": "a"}', headers={"content-type": kind})
            assert response.status_code == 200, kind

    def test_equal_keys_the_last_counts(self, client):
        body = b'{"text": "a", "k": 3, "k": 2}'
        response = client.post("/search", content=body, headers={"content-type": "application/json"})
        assert len(response.json()["hits"]) == 2

    def test_zero_byte_within_a_text(self, client):
        assert len(found(client, text="a\0b")["hits"]) == 10

    @pytest.mark.parametrize("data", [b"", b"no picture", PNG[:-30], b"<svg xmlns='http://www.w3.org/2000/svg'/>"])
    def test_pictures_that_are_none(self, client, data):
        for response in (
            client.post("/search", files={"image": ("x.png", data)}),
            search(client, image=base64.b64encode(data).decode()),
        ):
            assert response.status_code in (400, 415)
            problem(response, response.status_code)

    @pytest.mark.parametrize("text", ["", "%%%", "é", "data:image/png,abc", "AAA", "\ud7ff"])
    def test_no_base64(self, client, text):
        response = search(client, image=text)
        problem(response, 400)

    def test_urls_are_not_fetched_unasked(self, client):
        problem(search(client, image_url="http://127.0.0.1:1/x.png"), 403)

    def test_an_index_without_an_encoder(self, client):
        problem(search(client, index="bare", text="a"), 409, "encoder")
        problem(client.post("/search", files={"image": PNG}, data={"query": '{"index": "bare"}'}), 409, "encoder")


class TestForms:
    """Forms that are none."""

    @pytest.mark.parametrize(
        ("content", "kind", "statuses"),
        [
            (b"", "multipart/form-data", (400,)),
            (b"abc", "multipart/form-data; boundary=x", (400,)),
            (b"--x\r\n", "multipart/form-data; boundary=x", (400, 422)),
            (b"--x\r\n\r\nabc\r\n--x--\r\n", "multipart/form-data; boundary=x", (400,)),
            (b"--x--\r\n", "multipart/form-data; boundary=x", (422,)),
            (
                b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\nb\r\n--x--\r\n",
                "multipart/form-data; boundary=x",
                (422,),
            ),
            (
                b"--x\r\nContent-Disposition: form-data; name=query\r\n\r\n\xff\r\n--x--\r\n",
                "multipart/form-data; boundary=x",
                (422,),
            ),
            (
                b"--x\r\nContent-Disposition: form-data; name=\xff\r\n\r\nb\r\n--x--\r\n",
                "multipart/form-data; boundary=x",
                (422,),
            ),
            (
                b"--x\r\nContent-Disposition: form-data; name=query\r\n\r\n\\ud800\r\n--x--\r\n",
                "multipart/form-data; boundary=x; charset=unicode_escape",
                (400, 415, 422),
            ),
            (
                b"--x\r\nContent-Disposition: form-data; name=query\r\n\r\nxn--\xff\r\n--x--\r\n",
                "multipart/form-data; boundary=x; charset=idna",
                (400, 415, 422),
            ),
        ],
    )
    def test_refused(self, client, content, kind, statuses):
        response = client.post("/search", content=content, headers={"content-type": kind})
        assert response.status_code in statuses, response.text
        problem(response, response.status_code)

    def test_parts_that_are_not_known(self, client):
        problem(client.post("/search", files={"image": PNG, "picture": PNG}), 422, "picture")
        problem(client.post("/search", files={"image": PNG}, data={"text": "a"}), 422, "text")
        problem(client.post("/search", files=[("query", b'{"text":"a"}'), ("query", b"{}")]), 422, "query")

    def test_an_image_as_a_field_is_no_file(self, client):
        problem(client.post("/search", data={"image": "abc"}, files={"query": b"{}"}), 422, "image")

    def test_too_many_files(self, client):
        response = client.post("/search", files=[("image", PNG)] * 33)
        problem(response, 422, "32")
        problem(client.post("/embed", files=[("image", b"x")] * 65), 400, "64")


class TestBodiesThatAreMeantToHurt:
    def test_a_million_fields_are_refused_before_each_is_looked_at(self, client):
        many = b"{" + b",".join(b'"%d":1' % i for i in range(200_000)) + b"}"
        problem(client.post("/search", content=many, headers={"content-type": "application/json"}), 422, "fields")
        in_a_term = b'{"terms":[' + many + b"]}"
        problem(client.post("/search", content=in_a_term, headers={"content-type": "application/json"}), 422, "fields")
        form = {"query": (None, many, "application/json")}
        problem(client.post("/search", files=form), 422, "fields")

    @pytest.mark.parametrize("body", [b'{"embedding":[' + b"0," * 400_000 + b"0]}", b"[" * 400_000])
    @pytest.mark.parametrize("path", ["/search", "/knn-service", "/metadata"])
    def test_a_million_values_are_refused_before_they_are_parsed(self, client, path, body):
        problem(client.post(path, content=body, headers={"content-type": "application/json"}), 413, "values")

    def test_uploads_never_touch_the_disk(self, client, monkeypatch):
        import tempfile

        def full(self):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", full)
        noise = np.random.default_rng(0).integers(0, 255, (800, 800, 3), np.uint8)
        data = io.BytesIO()
        Image.fromarray(noise).save(data, "PNG")
        assert len(data.getvalue()) > 1 << 20
        assert client.post("/search", files={"image": data.getvalue()}).status_code == 200

    def test_half_a_form_is_refused(self, client):
        headers = {"content-type": "multipart/form-data; boundary=x"}
        problem(client.post("/search", content=b"--x\r\nno header at all", headers=headers), 400)
