"""GET /items/{id}/image: thumbnails out of shards and folders, what is kept of them, and files that are not what they were."""

from __future__ import annotations

import asyncio
import io
import os
import shutil

import httpx2 as httpx
import numpy as np
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from dualenc.images import Encoded
from dualenc.index.index import Index
from dualenc.serve import pictures, thumbnails
from dualenc.serve.outgoing import JPEG, WEBP, small
from dualenc.serve.settings import Settings
from dualenc.serve.thumbnails import Thumbnails, names, thumbnails_of
from tests.serve.pictured import (
    BLUE,
    GREEN,
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
)

PICTURES = {
    "wide.jpg": encoded(halves((640, 480)), quality=95),
    "tiny.jpg": encoded(halves((40, 20)), quality=95),
    "turned.jpg": turned(halves((640, 480)), 6),  # shown a quarter turn clockwise: red is above
    "cmyk.jpg": encoded(halves((640, 480)).convert("CMYK")),
    "alpha.png": encoded(Image.new("RGBA", (400, 100), (0, 0, 0, 0)), "PNG"),
    "line.png": encoded(Image.new("RGB", (3000, 1), GREEN), "PNG"),
    "broken.jpg": b"\xff\xd8\xff\xe0 not a picture",
    "cut.jpg": encoded(halves((640, 480)))[:900],
    "svg.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
}
ID = {name: number for number, name in enumerate(PICTURES)}


@pytest.fixture
def folder(tmp_path):
    """A folder with a shard and an index of it."""
    built(tmp_path / "index", metadata_of(shard(tmp_path / "shards/000.tar", PICTURES)))
    return tmp_path


@pytest.fixture
def client(folder):
    return opened(folder)


def opened(folder, **settings):
    return client_of({"main": Index.open(folder / "index")}, folder, **settings)


def get(client, name="wide.jpg", headers=None, **parameters):
    number = ID.get(name, name)
    return client.get(f"/items/{number}/image", params=parameters, headers=headers or {})


def picture(response):
    assert response.status_code == 200, response.text
    return Image.open(io.BytesIO(response.content)).convert("RGB")


def near(colour, wanted):
    return np.abs(np.array(colour) - np.array(wanted)).max() < 12


def refused(response, status, *words):
    """A problem document in words, without the server's paths."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status and all(word in problem["detail"] for word in words), problem
    assert "/tmp" not in response.text and ".tar" not in response.text and "Error" not in response.text
    return problem


def test_the_longer_side_has_the_size_asked_for(client):
    for size, shape in ((320, (320, 240)), (16, (16, 12)), (639, (639, 479))):
        response = get(client, size=size)
        small = picture(response)
        assert small.size == shape and response.headers["content-type"] == JPEG
        assert near(small.getpixel((1, 5)), RED) and near(small.getpixel((shape[0] - 2, 5)), BLUE)
    assert picture(get(client)).size == (320, 240)  # the usual one
    assert picture(get(client, "line.png", size=300)).size == (300, 1)  # no side of 0 pixels


def test_nothing_is_enlarged(client):
    assert picture(get(client, "tiny.jpg", size=2048)).size == (40, 20)
    assert picture(get(client, size=2048)).size == (640, 480)


def test_pictures_come_upright_in_rgb_and_on_white(client):
    upright = picture(get(client, "turned.jpg"))
    assert upright.size == (240, 320)
    assert near(upright.getpixel((120, 10)), RED) and near(upright.getpixel((120, 310)), BLUE)
    assert near(picture(get(client, "cmyk.jpg")).getpixel((5, 5)), RED)
    assert near(picture(get(client, "alpha.png")).getpixel((5, 5)), (255, 255, 255))
    assert b"Secret Camera" not in get(client, "turned.jpg").content


@pytest.mark.parametrize("kind", [JPEG, WEBP])
def test_nothing_but_pixels_goes_out(kind):
    remarks = {"comment": b"Secret Place", "icc_profile": b"Secret Colours", "xmp": b"Secret Owner"}
    exif = Image.Exif()
    exif[0x010F] = "Secret Camera"
    for data in (
        encoded(halves((40, 20)), exif=exif, **remarks),
        encoded(halves((40, 20)), "PNG", exif=exif, **remarks),
    ):
        assert b"Secret" in data
        assert all(b"Secret" not in small(data, size, kind, 1 << 20) for size in (20, 320))


def test_webp_for_those_who_name_it(client):
    accepted = "image/avif,image/webp,image/apng,*/*;q=0.8"
    for accept, kind in ((accepted, WEBP), ("image/webp;q=0.5", WEBP), ("*/*", JPEG), ("image/*", JPEG)):
        response = get(client, headers={"accept": accept})
        assert response.headers["content-type"] == kind and response.headers["vary"] == "Accept"
        assert Image.open(io.BytesIO(response.content)).format == kind.partition("/")[2].upper()
    assert get(client, headers={"accept": "image/webp; q=0, image/*"}).headers["content-type"] == JPEG


def test_a_reduced_decode_looks_like_a_whole_one():
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (15, 20, 3), np.uint8)).resize((2401, 1801))
    made = Image.open(io.BytesIO(small(encoded(photo, quality=95), 300, JPEG, 1 << 30)))
    wanted = photo.resize(made.size, Image.Resampling.BICUBIC)
    assert made.size == (300, 225)
    assert np.abs(np.asarray(made, float) - np.asarray(wanted, float)).mean() < 3  # a shift by a pixel: 8


def test_a_jpeg_is_decoded_at_a_fraction(monkeypatch):
    asked, decoded = [], Encoded.decoded
    monkeypatch.setattr(Encoded, "decoded", lambda self, by=1: asked.append(by) or decoded(self, by))
    small(encoded(halves((2400, 1800))), 300, JPEG, 1 << 30)
    assert asked == [8.0]


def test_an_etag_saves_sending_it_again(client):
    first = get(client)
    tag = first.headers["etag"]
    assert tag.startswith('"') and tag.endswith('"') and "no-cache" in first.headers["cache-control"]
    for given in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = get(client, headers={"if-none-match": given})
        assert again.status_code == 304 and again.content == b"" and again.headers["etag"] == tag
    other = get(client, headers={"if-none-match": '"other"'})
    assert other.status_code == 200 and other.content == first.content and other.headers["etag"] == tag
    tags = {get(client, size=size, headers={"accept": a}).headers["etag"] for size in (64, 320) for a in (JPEG, WEBP)}
    assert len(tags) == 4 and get(client, "tiny.jpg").headers["etag"] not in tags
    assert names('"a", W/"b"', '"b"') and not names("", '"b"') and not names('"ab"', '"b"')


def test_an_unknown_picture_is_told_even_when_its_etag_is_known(client, folder):
    tag = get(client).headers["etag"]
    (folder / "shards/000.tar").unlink()
    refused(get(client, headers={"if-none-match": tag}), 404)
    refused(get(client, headers={"if-none-match": "*"}), 404)


@pytest.mark.parametrize("size", [15, 2049, 0, -3, "big", "1e3", ""])
def test_sizes_out_of_range(client, size):
    assert "size" in refused(get(client, size=size), 422)["detail"]


@pytest.mark.parametrize("number", [-1, 2**63, 10**30, "x", "1.5"])
def test_ids_that_cannot_be(client, number):
    assert "id" in refused(get(client, number), 422)["detail"]


def test_what_is_not_there(client):
    refused(get(client, 999), 404, "999", "9 rows")
    refused(get(client, index="other"), 404, "other")
    assert picture(get(client, index="main")).size == (320, 240)


@pytest.mark.parametrize("name", ["broken.jpg", "cut.jpg", "svg.png"])
def test_what_does_not_decode(client, name):
    refused(get(client, name), 404, str(ID[name]), "cannot be shown")


def test_a_shard_that_was_moved_and_came_back(client, folder):
    shards = folder / "shards"
    first = get(client, size=100)
    shards.rename(folder / "elsewhere")
    refused(get(client), 404, "gone")
    refused(get(client, size=100), 404, "gone")  # though it is kept
    (folder / "elsewhere").rename(shards)
    assert get(client, size=100).content == first.content and picture(get(client))


def test_a_shard_that_was_cut(client, folder):
    path = folder / "shards/000.tar"
    with open(path, "r+b") as file:
        file.truncate(2000)
    refused(get(client), 404, "shorter")


def test_a_shard_that_was_written_anew(client, folder):
    assert get(client).status_code == 200
    other = encoded(halves((640, 480), GREEN, GREEN))
    data = PICTURES["wide.jpg"]
    same_size = other + b"\0" * (len(data) - len(other)) if len(other) < len(data) else data
    for members in (
        {"first.jpg": encoded(halves((64, 64))), **PICTURES},  # all lie further on
        {"wide.jpg": other, **{k: v for k, v in PICTURES.items() if k != "wide.jpg"}},  # another size
        {"second.jpg": same_size, **{k: v for k, v in PICTURES.items() if k != "wide.jpg"}},  # another of that size
    ):
        shard(folder / "shards/000.tar", members)
        refused(get(client), 404, "embed it again")
    shard(folder / "shards/000.tar", PICTURES)
    assert picture(get(client)).size == (320, 240)


def test_the_same_place_in_a_changed_file_is_another_thumbnail(client, folder):
    first = get(client)
    changed = encoded(halves((640, 480), GREEN, RED), quality=95)
    wide = changed + b"\0" * (len(PICTURES["wide.jpg"]) - len(changed))
    assert len(wide) == len(PICTURES["wide.jpg"])
    shard(folder / "shards/000.tar", {**PICTURES, "wide.jpg": wide})  # the same sample, repaired
    second = get(client, headers={"if-none-match": first.headers["etag"]})
    assert near(picture(second).getpixel((5, 5)), GREEN) and second.headers["etag"] != first.headers["etag"]


def test_pictures_of_a_folder(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name, colour in (("a", RED), ("b", GREEN)):
        (images / f"{name}.jpg").write_bytes(encoded(halves((100, 50), colour, colour)))
    built(tmp_path / "index", metadata_of(images))
    client = opened(tmp_path)
    assert near(picture(get(client, 0)).getpixel((5, 5)), RED) and near(picture(get(client, 1)).getpixel((5, 5)), GREEN)
    (images / "a.jpg").write_bytes(encoded(halves((300, 50), BLUE, GREEN)))
    refused(get(client, 0), 404, "changed")
    (images / "b.jpg").write_bytes(b"")
    refused(get(client, 1), 404, "shorter")
    (images / "b.jpg").unlink()
    (images / "b.jpg").mkdir()
    refused(get(client, 1), 404, "no file")


def test_places_that_are_none(tmp_path):
    data = tmp_path / "a.jpg"
    data.write_bytes(encoded(halves()))
    os.mkfifo(tmp_path / "pipe")
    whole = {"image_path": str(data), "image_offset": 0, "image_size": data.stat().st_size}
    rows = [
        whole,
        {**whole, "image_path": None},
        {**whole, "image_offset": None},
        {**whole, "image_path": "\0"},
        {**whole, "image_path": ""},
        {**whole, "image_path": str(tmp_path / "pipe")},
        {**whole, "image_path": str(tmp_path)},
        {**whole, "image_path": "/dev/zero"},
        {**whole, "image_offset": -1},
        {**whole, "image_offset": 3, "image_size": -2},
        {**whole, "image_offset": 2**62, "image_size": 2**62},
        {**whole, "image_size": 2**62},
        {**whole, "image_size": 0},
    ]
    built(tmp_path / "index", [*rows, {"image_path": str(data)}])
    client = opened(tmp_path)
    assert picture(get(client, 0)) and picture(
        get(client, len(rows))
    )  # the last: a whole file, as clip-retrieval has it
    for number in range(1, len(rows)):
        refused(get(client, number), 404, str(number))


def test_a_file_too_large_is_not_read(client, monkeypatch):
    monkeypatch.setattr(pictures, "MOST_BYTES", len(PICTURES["wide.jpg"]) - 1)
    refused(get(client), 404, "more than")
    assert picture(get(client, "tiny.jpg"))


@pytest.mark.parametrize("metadata", [None, [{"url": "http://x/a.jpg", "caption": "a"}], [{"image_path": ""}]])
def test_metadata_without_pictures(tmp_path, metadata):
    built(tmp_path / "index", metadata, n=1)
    refused(get(opened(tmp_path), 0), 404, "metadata")


def test_more_pixels_than_may_be_decoded(folder):
    client = opened(folder, max_pixels=2999)
    refused(get(client, "line.png"), 404, "too many pixels")
    assert picture(get(client)).size == (320, 240)  # a JPEG is decoded at a fraction of its size


def test_a_row_that_was_removed(folder):
    index = Index.open(folder / "index")
    client = client_of({"main": index}, folder)
    assert get(client, "tiny.jpg").status_code == 200
    index.remove([ID["tiny.jpg"]])
    refused(get(client, "tiny.jpg"), 404, "8 rows")
    assert get(client).status_code == 200


def test_damaged_metadata_is_no_unknown_id(folder):
    class Damaged(StandIn):
        def live(self, name):
            live = super().live(name)
            live.index = type("I", (), {"rows": fail, "ids": np.array([0]), "__len__": lambda self: 1})()
            return live

    def fail(self, ids):
        raise ValueError("secret.parquet does not open")

    app = app_of(Damaged({"main": Index.open(folder / "index")}), folder)
    response = get(TestClient(app, raise_server_exceptions=False), 0)
    assert response.status_code == 500 and "secret" not in response.text


def test_all_who_ask_at_once_share_one_decode(folder, monkeypatch):
    made = []
    monkeypatch.setattr(thumbnails, "small", lambda *given: made.append(given[1]) or small(*given))
    app = app_of(StandIn({"main": Index.open(folder / "index")}), folder)

    async def ask():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            both = [client.get("/items/0/image", params={"size": size}) for size in (100, 200) for _ in range(8)]
            return await asyncio.gather(*both)

    responses = asyncio.run(ask())
    assert [r.status_code for r in responses] == [200] * 16 and len({r.content for r in responses}) == 2
    assert sorted(made) == [100, 200] and len(thumbnails_of(app).kept) == 2


def test_the_oldest_go_when_there_are_too_many_bytes():
    async def work():
        kept, made = Thumbnails(most=100), []

        async def get(tag, size):
            async def make():
                made.append(tag)
                return b"x" * size

            return len(await kept.get(tag, make))

        assert [await get("a", 40), await get("b", 40), await get("a", 40)] == [40, 40, 40] and made == ["a", "b"]
        assert await get("c", 40) == 40 and kept.kept.bytes == 80  # b is gone, for a was asked for since
        assert await get("a", 40) == 40 and made == ["a", "b", "c"]
        assert await get("b", 40) == 40 and made == ["a", "b", "c", "b"]
        assert (
            await get("huge", 101) == 101 and kept.kept.bytes == 80 and len(kept.kept) == 2
        )  # it is sent, and pushes nothing out

    asyncio.run(work())


def test_one_that_goes_away_leaves_the_others_theirs():
    async def work():
        kept, started, go = Thumbnails(), [], asyncio.Event()

        async def make():
            started.append(1)
            await go.wait()
            return b"x"

        first, second = (asyncio.create_task(kept.get("a", make)) for _ in range(2))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        go.set()
        assert await second == b"x" and len(started) == 1
        with pytest.raises(asyncio.CancelledError):
            await first

    asyncio.run(work())


def test_a_failure_reaches_all_who_wait_and_is_not_kept():
    async def work():
        kept, tries = Thumbnails(), []

        async def make():
            tries.append(1)
            await asyncio.sleep(0)
            if len(tries) == 1:
                raise ValueError("broken")
            return b"x"

        failed = await asyncio.gather(*(kept.get("a", make) for _ in range(3)), return_exceptions=True)
        assert [str(error) for error in failed] == ["broken"] * 3 and len(tries) == 1
        assert await kept.get("a", make) == b"x"

    asyncio.run(work())


def test_what_was_kept_needs_no_shard_read(client, folder, monkeypatch):
    first = get(client)
    monkeypatch.setattr(thumbnails, "read", lambda found: pytest.fail("read again"))
    assert get(client).content == first.content
    shutil.copy(folder / "shards/000.tar", folder / "copy")  # reading is no change
    assert get(client).content == first.content


def test_the_real_application_answers(folder):
    from dualenc.serve.app import create_app

    app = create_app(Settings({"main": folder / "index"}))
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        first = get(client, headers={"accept": "image/webp"})
        assert picture(first).size == (320, 240) and first.headers["content-type"] == WEBP
        again = get(client, headers={"accept": "image/webp", "if-none-match": first.headers["etag"]})
        assert again.status_code == 304 and again.content == b""
        refused(get(client, "broken.jpg"), 404, "cannot be shown")
        refused(get(client, 999), 404)
        refused(get(client, size=1), 422)


def test_an_unknown_id_is_not_looked_for_among_all(client, monkeypatch):
    monkeypatch.setattr(Index, "ids", property(lambda self: pytest.fail("all ids were read")))
    refused(get(client, 99), 404, "99")
    response = client.post("/metadata", json={"ids": [0, 98], "indice_name": "main"})
    assert response.status_code == 404 and "id 98 " in response.json()["detail"]


def test_columns_that_python_cannot_hold_are_no_matter(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(halves()))
    far = pa.array([2**62]).cast(pa.timestamp("us"))
    columns = {"image_path": [str(tmp_path / "a.jpg")], "far": far, "fine": pa.array([1], pa.timestamp("ns"))}
    client = client_of({"main": built(tmp_path / "index", pa.table(columns))}, tmp_path)
    assert get(client, 0).status_code == 200
    row = client.post("/metadata", json={"ids": [0], "indice_name": "main"}).json()[0]["metadata"]
    assert row["fine"].startswith("1970-01-01") and set(row) == {"image", "far", "fine"}
