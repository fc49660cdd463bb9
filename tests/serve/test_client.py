"""The Python client, against the real application in a thread with an encoder that is a fake, and against servers that fail."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dualenc import Index
from dualenc.index.compose import combine, parse
from dualenc.serve import Client
from dualenc.serve.app import create_app
from dualenc.serve.client import ServerError
from dualenc.serve.settings import Settings
from dualenc.serve.wire import encoded
from tests.serve.fakes import FINGERPRINT, FakeEncoder, use_fake_encoders
from tests.serve.running import in_thread, rows, small_index
from tests.small import png

TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index that knows a (fake) encoder."""
    encoder = FakeEncoder()
    return small_index(tmp_path_factory.mktemp("client") / "photos", encoder=encoder)


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        use_fake_encoders(patch)
        indexes = {"photos": folder, "other": folder}
        with in_thread(create_app(Settings(indexes, token=TOKEN, encoder="fake"))) as url:
            yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Client]:
    with Client(url, token=TOKEN) as client:
        yield client


@pytest.fixture(scope="module")
def index(folder: Path) -> Index:
    return Index.open(folder)


def best(index: Index, query: np.ndarray, **options: Any) -> list[int]:
    ids, _ = index.page(query[None], **options)
    return [int(i) for i in ids[0] if i >= 0]


def test_a_search_by_embedding_is_the_index_s_own(client: Client, index: Index) -> None:
    query = rows(1, seed=5)[0]
    hits = client.search(embedding=query, k=7)
    ids, scores = index.search(query[None], k=7)
    assert hits.ids == ids[0].tolist()
    assert [hit.score for hit in hits] == pytest.approx(scores[0].tolist(), abs=1e-6)
    assert hits[0].metadata["key"] == f"k{hits[0].id}"
    assert hits[0].caption == f"picture {hits[0].id}"
    assert (hits.index, hits.rows, hits.generation, hits.exact, len(hits)) == ("photos", 100, 1, True, 7)
    assert hits.took_ms["total"] >= hits.took_ms["search"] > 0


def test_every_kind_of_term(client: Client, index: Index) -> None:
    encoder, data = FakeEncoder(), png(colour=(200, 10, 10))
    picture = Image.open(io.BytesIO(data))
    red, image = encoder.embed_texts(["red"])[0], encoder.embed_images([picture])[0]
    own, row = rows(1, seed=9)[0], index.vectors([17])[0]
    assert client.search("red").ids == best(index, red)
    assert client.search(image=data).ids == best(index, image)
    assert client.search(id=17).ids == best(index, row)
    assert client.search("red", data, own, id=17, k=100).ids == best(
        index, combine([red, image, own, row], [1] * 4), k=100
    )
    terms = [
        {"text": "red", "weight": np.float32(2)},
        {"image": picture, "weight": -1},
        (0.5, "embedding", own.tolist()),
    ]
    expected = best(index, combine([red, image, own], [2, -1, 0.5]), k=100)
    assert client.search(terms=terms, k=100).ids == expected
    assert "weight" in terms[0] and "upload" not in terms[1]  # the caller's own are as they were
    expression = parse('2*"red" - 0.5*#17')
    assert client.search(terms=expression, k=100).ids == best(index, combine([red, row], [2, -0.5]), k=100)


def test_two_images_keep_their_order(client: Client, index: Index) -> None:
    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    query = combine(FakeEncoder().embed_images(pictures), [3, -1])
    terms = [{"weight": 3, "image": pictures[0]}, {"weight": -1, "image": pictures[1]}]
    assert client.search(terms=terms, k=100).ids == best(index, query, k=100)


def test_an_image_is_a_path_or_bytes_or_a_picture(tmp_path: Path) -> None:
    data = png()
    (tmp_path / "a.png").write_bytes(data)
    assert encoded(tmp_path / "a.png") == encoded(str(tmp_path / "a.png")) == encoded(data) == data
    picture = Image.open(io.BytesIO(data))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encoded(picture)))), np.asarray(picture))
    with pytest.raises(ValueError, match="an image is int"):
        encoded(3)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        encoded(tmp_path / "b.png")


def test_pages_filters_groups_and_threshold(client: Client, index: Index) -> None:
    query = rows(1, seed=6)[0]
    every = client.search(embedding=query, k=100)
    assert every.next_offset is None
    page = client.search(embedding=query, k=10, offset=20)
    assert (page.ids, page.next_offset) == (every.ids[20:30], 30)
    assert client.search(embedding=query, k=100, where="even").ids == [i for i in every.ids if i % 2 == 0]
    assert len(client.search(embedding=query, k=100, group_by="even")) == 2
    least = every[4].score
    assert [hit.score >= least for hit in client.search(embedding=query, k=100, threshold=least)] == [True] * 5
    hit = client.search(embedding=query, k=1, vectors=True)[0]
    assert hit.vector == pytest.approx(index.vectors([hit.id])[0].tolist())


def test_labels(client: Client, index: Index) -> None:
    hits = client.search("red", labels=["cat", "dog"], templates=["a {}"])
    classes = FakeEncoder().embed_texts(["a cat", "a dog"])
    for hit in hits:
        scores = classes @ index.vectors([hit.id])[0]
        assert hit.label == ("cat", "dog")[int(scores.argmax())]
        assert hit.probability is not None and 0.5 <= hit.probability <= 1


def test_items(client: Client, index: Index) -> None:
    item = client.item(5)
    assert (item["id"], item["metadata"]["caption"]) == (5, "picture 5")
    similar = client.similar(5, k=9, where="n < 50")
    assert similar.ids == [i for i in best(index, index.vectors([5])[0], k=100) if i != 5 and i < 50][:9]
    assert client.similar(5, k=3, offset=3, where="n < 50").ids == similar.ids[3:6]


def test_indexes_and_readiness(client: Client) -> None:
    assert [entry["name"] for entry in client.indexes()] == ["photos", "other"]
    assert client.indexes()[0]["rows"] == 100
    assert client.ready()["photos"]["rows"] == 100
    assert client.search("red", index="other").index == "other"


def test_embeddings_and_classes(client: Client) -> None:
    encoder, picture = FakeEncoder(), Image.new("RGB", (9, 5), "green")
    assert np.allclose(client.embed_texts(["a", "b"]), encoder.embed_texts(["a", "b"]), atol=1e-6)
    images = client.embed_images([picture, png()])
    assert images.shape == (2, 16) and images.dtype == np.float32
    assert np.allclose(images[0], encoder.embed_images([picture])[0], atol=1e-6)
    found = client.classify(picture, ["cat", "dog", "cow"], templates=["{}"], k=2)
    scores = encoder.embed_texts(["cat", "dog", "cow"]) @ encoder.embed_images([picture])[0]
    assert [each["name"] for each in found] == [("cat", "dog", "cow")[i] for i in np.argsort(-scores)[:2]]


@pytest.mark.parametrize(
    ("ask", "status", "said"),
    [
        (lambda c: c.search("x", index="nowhere"), 404, "nowhere"),
        (lambda c: c.search("x", k=0), 422, "k"),
        (lambda c: c.search("x", where="height > 5"), 400, "height"),
        (lambda c: c.search(embedding=[1.0, 0.0]), None, "16"),
        (lambda c: c.search(), None, ""),
        (lambda c: c.search(terms=[{"sound": "x"}]), 422, "sound"),
        (lambda c: c.item(10_000), 404, "10000"),
        (lambda c: c.image(5), 404, ""),
        (lambda c: c.search(image=b"no picture"), None, ""),
    ],
)
def test_a_refusal_is_one_line_of_the_server_s(
    client: Client, ask: Callable[[Client], Any], status: int, said: str
) -> None:
    with pytest.raises(ServerError) as caught:
        ask(client)
    text, error = str(caught.value), caught.value
    assert text.startswith(client.url) and "\n" not in text
    assert said in text
    assert error.status == status or (status is None and 400 <= (error.status or 0) < 500)
    assert error.document["instance"]


def test_a_token_is_asked_for(url: str) -> None:
    for token in (None, "wrong"):
        with Client(url, token=token) as stranger, pytest.raises(ServerError) as caught:
            stranger.search("red")
        assert caught.value.status == 401
        assert "token" in str(caught.value).lower()
        assert TOKEN not in str(caught.value)


def test_many_threads_share_one_client(client: Client, index: Index) -> None:
    queries = rows(64, seed=3)
    found: dict[int, list[int]] = {}

    def ask(part: int) -> None:
        for number in range(part, 64, 8):
            found[number] = client.search(embedding=queries[number]).ids

    threads = [threading.Thread(target=ask, args=(part,)) for part in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: best(index, query) for number, query in enumerate(queries)}


class Scripted:
    """An application that answers each request as the next (status, headers, body) says; it counts its connections."""

    def __init__(self, *answers: tuple[int, dict[str, str], bytes]):
        self.answers, self.asked, self.ports = list(answers), 0, set[int]()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for _ in range(2):
                await send({"type": f"{(await receive())['type']}.complete"})
            return
        self.ports.add(scope["client"][1])
        status, headers, body = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": body})


FOUND = (200, {}, json.dumps([{"name": "photos"}]).encode())
LOADING = (503, {"retry-after": "0"}, b'{"title": "Encoder is loading", "detail": "try again"}')


def test_connections_are_kept() -> None:
    app = Scripted(FOUND)
    with in_thread(app) as url, Client(url) as client:
        for _ in range(5):
            client.indexes()
    assert (app.asked, len(app.ports)) == (5, 1)


def test_it_waits_for_a_server_that_asks_it_to() -> None:
    app = Scripted(LOADING, (429, {"retry-after": "0"}, b"{}"), FOUND)
    with in_thread(app) as url, Client(url) as client:
        assert client.indexes() == [{"name": "photos"}]
    assert app.asked == 3


def test_it_waits_no_longer_than_its_timeout() -> None:
    app = Scripted((503, {"retry-after": "60"}, LOADING[2]))
    said = r"try again \(503 Encoder is loading\)"
    with in_thread(app) as url, Client(url, timeout=5) as client, pytest.raises(ServerError, match=said):
        client.indexes()
    assert app.asked == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((502, {}, b"<html>\nBad gateway\n</html>"), "502 Bad Gateway"),
        ((200, {}, b"<html>a site</html>"), "is not a dualenc server"),
        ((200, {}, b"{}"), "is not a dualenc server"),
        ((302, {"location": "http://127.0.0.1:1/"}, b""), "302"),
        ((500, {}, b'["a list"]'), "500"),
        ((503, {"retry-after": "tomorrow"}, b""), "503"),
    ],
)
def test_what_is_no_server_of_ours_is_one_line(answer: Any, said: str) -> None:
    with in_thread(Scripted(answer)) as url, Client(url, token="t") as client, pytest.raises(ServerError) as caught:
        client.search("x")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("status", [401, 429, 500, 503])
def test_a_refusal_is_no_readiness(status: int) -> None:
    answer = (status, {"content-type": "application/problem+json"}, b'{"title": "Refused", "detail": "not now"}')
    with in_thread(Scripted(answer)) as url, Client(url) as client, pytest.raises(ServerError, match="not now"):
        client.ready()


def test_what_is_not_ready_is_told() -> None:
    state = {"photos": {"rows": 3, "generation": 1, "encoder": "loading"}}
    answer = (503, {"content-type": "application/json"}, json.dumps(state).encode())
    with in_thread(Scripted(answer)) as url, Client(url) as client:
        assert client.ready() == state


def test_nobody_there() -> None:
    with (
        Client("127.0.0.1:9") as client,
        pytest.raises(ServerError, match=r"cannot be reached .*is `dualenc serve` running"),
    ):
        client.indexes()


@pytest.mark.parametrize("url", ["ftp://x", "http://", "", "http:///x", "://"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match="is no server's address"):
        Client(url)


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with in_thread(Scripted(FOUND)) as url, Client(url) as client:
        assert client.indexes()


def test_a_server_that_closes_a_kept_connection_is_asked_again() -> None:
    """One that was restarted, or lost a worker: nothing was changed by a search, so it may be repeated once."""
    import socket

    listener = socket.create_server(("127.0.0.1", 0))
    body = FOUND[2]
    served = []

    def serve() -> None:
        for answers in (1, 0, 1):  # requests that are answered before the connection is cut
            connection, _ = listener.accept()
            with connection:
                for _ in range(answers + 1):
                    if not connection.recv(65536):
                        break
                    served.append(1)
                    if len(served) in (1, 4):
                        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
                    else:
                        break

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with listener, Client(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=10) as client:
        assert client.indexes()
        with pytest.raises(ServerError, match="broke off the connection"):
            client.indexes()
        assert client.indexes()


def test_it_needs_neither_torch_nor_the_server() -> None:
    code = (
        "import sys\nfrom dualenc.serve import Client\nClient('http://127.0.0.1:9')\n"
        "heavy = {'torch', 'fastapi', 'uvicorn', 'starlette', 'pydantic', 'faiss', 'numpy', 'PIL', 'pyarrow'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_fake_encoder_is_the_index_s(index: Index) -> None:
    assert index.fingerprint == FINGERPRINT


def test_the_readmes_example(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    block = readme.partition("```py\n")[2].partition("```")[0].replace("objects = 2", "n > 2")
    use_fake_encoders(monkeypatch)
    with in_thread(create_app(Settings({"photos": folder}, encoder="fake"))) as url:
        assert "http://127.0.0.1:8000" in block
        exec(compile(block.replace("http://127.0.0.1:8000", url), "README.md", "exec"), {})
    assert "'picture " in capsys.readouterr().out
