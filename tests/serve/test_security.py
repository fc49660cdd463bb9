"""Who may ask, how often and how much; and what every answer says to the browser."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import Response
from starlette.testclient import TestClient

from dualenc.serve import addresses, body, guard, observe, problems, protocol, security
from dualenc.serve.rate import Rate, whose
from dualenc.serve.settings import Settings
from dualenc.serve.tokens import Token
from tests.serve.running import in_thread, until

TOKEN = "a token of some length"


def application(order: str = "pso", **settings) -> FastAPI:
    app = FastAPI(docs_url=None, redoc_url=None)
    settings = Settings(indexes={"a": Path("a")}, **settings)
    install = {
        "p": lambda: problems.install(app),
        "s": lambda: security.install(app, settings),
        "o": lambda: observe.install(app, settings),
    }
    for part in order:
        install[part]()

    @app.post("/search")
    async def search(request: Request):
        return {"bytes": len(await request.body())}

    @app.post("/form")
    async def form(request: Request):
        return {"fields": sorted(await request.form())}

    @app.post("/unread")
    async def unread():
        return {}

    @app.get("/items/{id}/image")
    async def image(id: int):
        return Response(b"", headers={"Cache-Control": "private, max-age=60", "Content-Security-Policy": "sandbox"})

    @app.get("/slow")
    async def slow():
        await asyncio.sleep(0.5)

    @app.get("/fails")
    async def fails():
        raise RuntimeError("secret")

    for path in ("/healthz", "/readyz", "/indexes", "/", "/openapi"):
        app.add_api_route(path, empty)
    return app


async def empty():
    return {}


def client(**settings) -> TestClient:
    return TestClient(application(**settings), base_url="http://localhost:8000")


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# headers


@pytest.mark.parametrize("order", ["pso", "osp"])
@pytest.mark.parametrize("path, status", [("/", 200), ("/nowhere", 404), ("/fails", 500), ("/search", 405)])
def test_every_answer_has_the_headers(order, path, status):
    reply = client(order=order).get(path)
    assert reply.status_code == status and "x-request-id" in reply.headers
    policy = dict(part.split(" ", 1) for part in reply.headers["content-security-policy"].split("; ") if " " in part)
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'" and policy["trusted-types"] == "'none'"
    assert "unsafe" not in str(policy) and "http:" not in str(policy) and "*" not in str(policy)
    expected = {
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
    }
    assert expected.items() <= dict(reply.headers).items()
    assert "camera=()" in reply.headers["permissions-policy"]


def test_refusals_have_the_headers_and_an_id_too():
    reply = client(token=TOKEN).get("/indexes")
    assert reply.status_code == 401
    assert reply.json()["instance"] == reply.headers["x-request-id"]
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in reply.headers


def test_what_a_route_says_itself_stays():
    reply = client().get("/items/1/image")
    assert reply.headers["cache-control"] == "private, max-age=60"
    assert reply.headers.get_list("content-security-policy") == ["sandbox"]
    assert client().get("/indexes").headers["cache-control"] == "no-store"
    assert client().get("/").headers["cache-control"] == "no-cache"


# host


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:80",
        "photos.localhost:8000",
        "127.0.0.1:8000",
        "[::1]:8000",
        "[::1]",
        "127.0.0.2",
        "10.1.2.3:8000",
    ],
)
def test_names_of_this_machine_and_addresses_are_answered(host):
    assert client().get("/indexes", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.nip.io:8000",
        "",
        "localhost@evil.example",
        "[::1",
        "[::1]evil",
        "[::1]x80",
    ]
    + ["localhost:80@evil.example", "evillocalhost", "2130706433", "127.1"],
)
def test_other_names_are_not_while_bound_to_loopback(host):
    for path in ("/indexes", "/", "/healthz"):
        reply = client().get(path, headers={"Host": host})
        assert reply.status_code == 421 and "localhost" in reply.json()["detail"]
    assert client(host="0.0.0.0", token=TOKEN).get("/healthz", headers={"Host": host}).status_code == 200


def test_what_counts_as_loopback():
    assert all(map(addresses.is_loopback, ["127.0.0.1", "::1", "localhost", "LOCALHOST", "127.9.9.9", "[::1]"]))
    assert not any(map(addresses.is_loopback, ["0.0.0.0", "::", "10.0.0.1", "photos.example", "", "localhost.example"]))


# other sites


@pytest.mark.parametrize("site", ["cross-site", "same-site", "odd"])
def test_other_sites_pages_change_nothing(site):
    headers = {"Sec-Fetch-Site": site, "Origin": "https://evil.example"}
    assert client().post("/search", json={}, headers=headers).status_code == 403
    assert client().get("/", headers=headers).status_code == 200  # a link to the page
    assert client(cors=("https://a.example",)).post("/search", json={}, headers=headers).status_code == 403
    assert client(cors=("https://evil.example",)).post("/search", json={}, headers=headers).status_code == 200
    assert client(cors=("*",)).post("/search", json={}, headers=headers).status_code == 200
    for own in ("same-origin", "none"):
        assert client().post("/search", json={}, headers={"Sec-Fetch-Site": own}).status_code == 200


def test_where_a_browser_tells_no_site_the_origin_must_be_ours():
    for origin, status in (
        ("http://evil.example", 403),
        ("http://localhost:81", 403),
        ("null", 403),
        ("http://localhost:8000", 200),
        ("https://localhost:8000", 200),  # behind a proxy that speaks TLS
    ):
        assert client().post("/search", json={}, headers={"Origin": origin}).status_code == status, origin


def test_two_hosts_are_refused():
    asked = [("Host", "localhost"), ("Host", "evil.example")]
    assert client().request("GET", "/healthz", headers=asked).status_code == 400


def test_cors_is_off_by_default():
    headers = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    replies = [client().options("/search", headers=headers), client().get("/indexes", headers=headers)]
    assert [reply.status_code for reply in replies] == [405, 200]
    for reply in replies:
        assert not [name for name in reply.headers if name.startswith("access-control")]


def test_cors_for_named_origins():
    ask = client(cors=("https://a.example",), token=TOKEN)
    preflight = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type",
    }
    reply = ask.options("/search", headers={"Origin": "https://a.example"} | preflight)
    assert reply.status_code == 200
    assert reply.headers["access-control-allow-origin"] == "https://a.example"
    assert "access-control-allow-credentials" not in reply.headers  # the cookie is for the own page
    assert ask.options("/search", headers={"Origin": "https://b.example"} | preflight).status_code == 400
    reply = ask.get("/indexes", headers={"Origin": "https://a.example"})  # a refusal can be read there
    assert reply.status_code == 401 and reply.headers["access-control-allow-origin"] == "https://a.example"
    assert reply.headers["cross-origin-resource-policy"] == "cross-origin"
    assert "access-control-allow-origin" not in ask.get("/indexes", headers={"Origin": "https://b.example"}).headers


# token


def test_the_token_is_needed_everywhere_but_for_probes_and_page():
    ask = client(token=TOKEN)
    for path in ("/indexes", "/items/1/image", "/nowhere", "/openapi.json", "/metrics", "/metrics-summary", "/fails"):
        reply = ask.get(path)
        assert reply.status_code == 401, path
        assert reply.headers["www-authenticate"].startswith("Bearer")
        assert ask.get(path, headers=bearer(TOKEN)).status_code != 401
    assert ask.post("/search", json={}).status_code == ask.post("/").status_code == 401
    for path in ("/healthz", "/readyz", "/"):
        assert ask.get(path).status_code == 200


@pytest.mark.parametrize(
    "path", ["//indexes", "/healthz/../indexes", "/healthz/", "/HEALTHZ", "/indexes;/healthz", "/x/healthz"]
)
def test_no_spelling_of_a_path_is_open(path):
    assert client(token=TOKEN).get(f"http://localhost:8000{path}").status_code == 401


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer é"]
)
def test_wrong_tokens(header):
    reply = client(token=TOKEN).get("/indexes", headers={"Authorization": header.encode()})
    assert reply.status_code == 401 and TOKEN not in reply.text


def test_the_scheme_is_written_as_one_likes():
    for header in (f"bearer {TOKEN}", f"BEARER  {TOKEN} "):
        assert client(token=TOKEN).get("/indexes", headers={"Authorization": header}).status_code == 200


def test_tokens_are_compared_in_constant_time(monkeypatch):
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    token = Token(TOKEN)
    for guess in (b"", b"x" * 1000, TOKEN.encode()):
        assert token.is_(guess) == (guess == TOKEN.encode())
    assert len(compared) == 3 and {len(side) for pair in compared for side in pair} == {32}


def test_a_session_shows_images():
    ask = client(token=TOKEN)
    for wrong in ("x", TOKEN + " ", "\ud800"):
        reply = ask.post("/session", content=f'{{"token": "{wrong}"}}'.encode("utf-8", "surrogatepass"))
        assert reply.status_code in (400, 401, 422) and "set-cookie" not in reply.headers
    assert ask.post("/session", json={"token": "\\ud800"}).status_code == 401
    assert ask.get("/items/1/image").status_code == 401
    reply = ask.post("/session", json={"token": TOKEN})
    assert reply.status_code == 204
    cookie = reply.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path=/" in cookie and "Secure" not in cookie
    assert TOKEN not in cookie
    assert ask.get("/items/1/image").status_code == 200  # the client keeps cookies, as a browser does
    assert ask.delete("/session").status_code == 204
    assert ask.get("/items/1/image").status_code == 401
    with TestClient(application(token=TOKEN), base_url="https://localhost") as ask:
        assert ask.delete("/session").status_code == 204  # a cookie of another token may go
        assert "Secure" in ask.post("/session", json={"token": TOKEN}).headers["set-cookie"]


def test_a_cookie_is_of_one_token():
    one, other = Token(TOKEN), Token("another")
    assert one.cookie != other.cookie and one.value != other.value
    ask = client(token=TOKEN)

    def status(cookie: str) -> int:
        return ask.get("/indexes", headers={"Cookie": cookie}).status_code

    assert status(f"a=b; {one.cookie}={one.value};c=d") == 200
    assert status(f"{one.cookie}=old; {one.cookie}={one.value}") == 200
    wrong = [(one.cookie, other.value), (one.cookie, ""), (other.cookie, one.value), (f"x{one.cookie}", one.value)]
    assert [status(f"{name}={value}") for name, value in wrong] == [401] * 4
    assert status(one.value) == 401


def test_without_a_token_there_is_no_session():
    assert client().post("/session", json={"token": "x"}).status_code in (404, 405)


# rate


def test_rate_lets_bursts_through_and_says_when_to_come_again(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(guard, "monotonic", lambda: now[0])
    ask = client(rate=2.0)
    assert [ask.get("/indexes").status_code for _ in range(5)] == [200] * 4 + [429]
    reply = ask.get("/indexes")
    assert reply.headers["retry-after"] == "1" and reply.json()["title"] == "Too many requests"
    for path in ("/healthz", "/readyz", "/"):
        assert ask.get(path).status_code == 200
    now[0] += 0.5
    assert [ask.get("/indexes").status_code for _ in range(2)] == [200, 429]
    now[0] += 0.5
    assert {ask.get("/items/1/image").status_code for _ in range(20)} == {200}  # twenty count for one
    assert ask.get("/items/1/image").status_code == 429


def test_guesses_of_the_token_are_limited_too():
    ask = client(rate=1.0, token=TOKEN)
    statuses = [ask.get("/indexes", headers=bearer(str(n))).status_code for n in range(8)]
    assert statuses[:2] == [401, 401] and 429 in statuses


def test_workers_share_the_rate_out():
    assert sum(not Rate(10, workers=4).wait("a", 0.0) for _ in range(1)) == 1
    rate = Rate(10, workers=4)
    assert sum(not rate.wait("a", 0.0) for _ in range(100)) == 5


def test_a_slow_rate_still_lets_one_through():
    rate = Rate(0.1)
    assert rate.wait("a", 0.0) == 0
    assert rate.wait("a", 0.0) == 10
    assert rate.wait("a", 5.0) == 5
    assert rate.wait("a", 10.0) == 0


def test_the_table_of_addresses_is_bounded():
    rate = Rate(1, most=100)
    for number in range(10_000):
        assert rate.wait(f"10.0.{number // 256}.{number % 256}", 0.0) == 0
    assert len(rate.buckets) == 100
    rate = Rate(1, most=100)
    statuses = [rate.wait("busy", 0.0) or rate.wait(f"10.0.0.{number}", 0.0) for number in range(90)]
    assert any(statuses)  # who asks often is not who is forgotten


def test_addresses_that_one_person_has():
    assert whose(("10.0.0.1", 1)) == "10.0.0.1" == whose(("::ffff:10.0.0.1", 2))
    assert whose(("2001:db8::1", 1)) == whose(("2001:db8::ffff:1", 1)) != whose(("2001:db8:0:1::1", 1))
    assert whose(None) == "-" and whose(("testclient", 1)) == "testclient" and whose(("a:b", 1)) == "a:b"


# bodies


def test_bodies_up_to_the_limit():
    ask = client(max_body=2000)
    assert ask.post("/search", content=b"x" * 2000).json() == {"bytes": 2000}
    assert ask.post("/search", content=iter([b"x" * 1000] * 2)).json() == {"bytes": 2000}
    for content in (b"x" * 2001, iter([b"x" * 1000] * 3)):
        reply = ask.post("/search", content=content)
        assert reply.status_code == 413 and reply.json()["max_bytes"] == 2000
        assert reply.headers["connection"] == "close" and reply.headers["x-content-type-options"] == "nosniff"


def test_a_form_that_is_too_large_is_413_and_not_bad():
    ask = client(max_body=2000)
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + b"x" * 3000 + b"\r\n--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert ask.post("/form", content=iter([part[:50], part[50:]]), headers=headers).status_code == 413
    assert ask.post("/form", content=part, headers=headers).status_code == 413


@pytest.mark.parametrize(
    "parameter, status",
    [
        ("", 200),
        ("; charset=UTF-8", 200),
        ('; charset="us-ascii"', 200),
        ("; charset=punycode", 415),
        ("; charset=idna", 415),
    ]
    + [("; charset*=utf-8''punycode", 415), ("; charset=utf-8; charset=punycode", 415), ("; CHARSET = punycode", 415)]
    + [("; charset*0=puny; charset*1=code", 415), ("; charset=", 415)],
)
def test_codecs_that_take_hours_are_not_chosen_by_callers(parameter, status):
    part = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n--b--\r\n'
    headers = {"Content-Type": f"multipart/form-data; boundary=b{parameter}"}
    assert client().post("/form", content=part, headers=headers).status_code == status


def call(app, headers, messages) -> list[dict]:
    """What an ASGI app sends for a POST whose body comes as `messages` (None: nothing comes any more)."""
    sent: list[dict] = []

    async def receive():
        message = messages.pop(0) if messages else None
        if message is None:
            await asyncio.sleep(60)
        return message

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/search", "headers": headers}
    asyncio.run(app(scope, receive, send))
    return sent


async def reads_all(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def chunk(size: int, more: bool = True) -> dict:
    return {"type": "http.request", "body": b"x" * size, "more_body": more}


CHUNKED = [(b"transfer-encoding", b"chunked")]


def test_slow_bodies_are_given_up():
    app = body.Bodies(reads_all, most=10_000, grace=0.05, slowest=100_000)
    sent = call(app, CHUNKED, [chunk(10), None])
    assert sent[0]["status"] == 408 and dict(sent[0]["headers"])[b"connection"] == b"close"
    assert call(app, CHUNKED, [chunk(10), chunk(10, more=False)])[0]["status"] == 200
    assert app.held == 0


def test_what_comes_after_the_body_may_take_its_time():
    async def waits(scope, receive, send):
        await receive()
        assert (await receive())["type"] == "http.disconnect"  # how a route learns that its caller left
        await reads_all(scope, receive, send)

    async def receive_slowly():
        await asyncio.sleep(0.05)
        return {"type": "http.disconnect"}

    async def run() -> list[dict]:
        sent: list[dict] = []
        first = [chunk(1, more=False)]

        async def receive():
            return first.pop() if first else await receive_slowly()

        async def send(message):
            sent.append(message)

        app = body.Bodies(waits, most=10, grace=0.01)
        await app(
            {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-length", b"1")]}, receive, send
        )
        return sent

    assert asyncio.run(run())[0]["status"] == 200


def test_all_bodies_together_are_bounded():
    app = body.Bodies(reads_all, most=1000, at_once=0)  # raised to 4 x most
    app.held = 3500
    sent = call(app, CHUNKED, [chunk(400), chunk(400, more=False)])
    assert sent[0]["status"] == 503 and b"retry-after" in dict(sent[0]["headers"])
    assert app.held == 3500
    app.held = 0
    assert call(app, CHUNKED, [chunk(800, more=False)])[0]["status"] == 200


def test_a_body_is_refused_by_its_length_before_anything_is_read():
    async def never(*_):
        raise AssertionError("asked")

    for length, status in ((b"1001", 413), (b"-1", 400), (b"9" * 30, 400), (b"1e3", 400), ("²".encode("latin-1"), 400)):
        sent = call(body.Bodies(never, most=1000), [(b"content-length", length)], [chunk(0, more=False)])
        assert sent[0]["status"] == status, length


def test_what_a_refused_sender_still_sends_is_read_and_dropped():
    for headers in (CHUNKED, [(b"content-length", b"5000")]):
        messages = [chunk(1000) for _ in range(5)] + [chunk(0, more=False)]
        sent = call(body.Bodies(reads_all, most=1000), headers, messages)
        assert messages == [] and [message.get("status") for message in sent] == [413, None, None]
        assert sent[1]["more_body"] and not sent[2].get("more_body")  # told first, ended when all is read


def test_a_body_that_keeps_up_may_take_longer():
    async def run() -> int:
        pieces = [chunk(100)] * 5 + [chunk(0, more=False)]
        statuses = []

        async def receive():
            await asyncio.sleep(0.1)
            return pieces.pop(0)

        async def send(message):
            statuses.append(message.get("status"))

        app = body.Bodies(reads_all, most=10_000, grace=0.3, slowest=100)  # a second more with each piece
        await app({"type": "http", "method": "POST", "path": "/", "headers": CHUNKED}, receive, send)
        return statuses[0]

    assert asyncio.run(run()) == 200


def test_a_refusal_is_told_once():
    async def tells_and_raises(scope, receive, send):
        try:
            await reads_all(scope, receive, send)
        except problems.Problem:
            await send({"type": "http.response.start", "status": 400, "headers": []})
            await send({"type": "http.response.body", "body": b"its own words"})
            raise

    sent = call(body.Bodies(tells_and_raises, most=10), CHUNKED, [chunk(20, more=False)])
    assert [message.get("status") for message in sent if message["type"] == "http.response.start"] == [413]
    assert b"its own words" not in b"".join(message.get("body", b"") for message in sent)


def test_half_an_answer_is_not_followed_by_another():
    async def answers_early(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with contextlib.suppress(problems.Problem):
            while True:
                await receive()
        await send({"type": "http.response.body", "body": b""})

    sent = call(body.Bodies(answers_early, most=10), CHUNKED, [chunk(8), chunk(8)])
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[0]["status"] == 200


# over a real socket


def talk(url: str, head: str, pieces=(), end: str = "\r\n\r\n") -> bytes:
    """What the server answers to raw bytes, until it closes or has said all."""
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10) as wire:
        wire.sendall(head.replace("\r\n", "\n").replace("\n", "\r\n").encode() + end.encode())
        with contextlib.suppress(OSError):
            for piece in pieces:
                wire.sendall(piece)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while data := wire.recv(65536):
                answer += data
    return answer


def test_refused_uploads_hear_why(monkeypatch):
    """The sender is still sending when the server has seen enough."""
    monkeypatch.setattr(body, "LINGER", 0.5)
    app = application(max_body=100_000)
    with in_thread(app) as url:
        block = b"x" * 50_000
        long = talk(url, "POST /search HTTP/1.1\nHost: localhost\nContent-Length: 5000000", [block] * 100)
        chunks = [b"c350\r\n" + block + b"\r\n"] * 100 + [b"0\r\n\r\n"]
        chunked = talk(url, "POST /search HTTP/1.1\nHost: localhost\nTransfer-Encoding: chunked", chunks)
        ended = talk(url, "POST /search HTTP/1.1\nHost: localhost\nExpect: 100-continue\nContent-Length: 5000000")
        for answer in (long, chunked, ended):
            assert answer.startswith(b"HTTP/1.1 413 "), answer[:200]
            assert b"Body too large" in answer
        two = "POST /search HTTP/1.1\nHost: localhost\nContent-Length: 3\nTransfer-Encoding: chunked"
        assert b" 200 " not in talk(url, two, [b"0\r\n\r\n"])[:15]  # a smuggler's request


def test_a_stalled_upload_ends(monkeypatch):
    app = application()
    monkeypatch.setattr(body, "GRACE", 0.2)
    next(one for one in app.user_middleware if one.cls is body.Bodies).kwargs["grace"] = 0.2
    with in_thread(app) as url:
        answer = talk(url, "POST /search HTTP/1.1\nHost: localhost\nContent-Length: 5000", [b"x" * 10])
    assert answer.startswith(b"HTTP/1.1 408 ") and b"Body too slow" in answer


@contextlib.contextmanager
def bounded(app, **options):
    """A server's URL, as `in_thread`, with the bounds on headers."""
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, http=protocol.best(), log_config=None, lifespan="off", **options)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)


AGAIN = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: "


def slowly(pieces):
    """The pieces, far enough apart to be read one by one."""
    for piece in pieces:
        yield piece
        time.sleep(0.1)


def test_headers_are_bounded():
    start = "GET /healthz HTTP/1.1\nHost: localhost"
    with bounded(application()) as url:
        for endless in ([b"X: "] + [b"a" * 65536] * 200, [b"X: 1\r\n" * 10_000] * 200):
            answer = talk(url, start, endless, end="\r\n")
            assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")  # cut off while it still sent
        answer = talk(url, start, [b"X: " + b"a" * 70_000], end="\r\n")
        assert answer.startswith(b"HTTP/1.1 431 ") and b"Headers too large" in answer
        answer = talk(
            url, start, slowly([b"X: " + b"a" * 40_000, b"\r\n\r\n", AGAIN, b"a" * 40_000, b"\r\n\r\n"]), end="\r\n"
        )
        assert answer.count(b"HTTP/1.1 200 ") == 2  # each request is counted for itself
        answer = talk(url, "nonsense")
        assert answer.startswith(b"HTTP/1.1 400 ") and b"application/problem+json" in answer
        whole = f"{start}\nX: {'a' * 60_000}\nConnection: close"
        assert talk(url, whole).startswith(b"HTTP/1.1 200 ")
        posts = "POST /search HTTP/1.1\nHost: localhost\nConnection: close\nContent-Length: 500000"
        assert b'{"bytes":500000}' in talk(url, posts, [b"x" * 500_000])


def test_connections_that_ask_nothing_end(monkeypatch):
    monkeypatch.setattr(protocol, "SECONDS", 0.2)
    with bounded(application(), timeout_keep_alive=1) as url:
        assert talk(url, "GET / HTTP/1.1\nHost", end="") == b""
        assert talk(url, "", end="") == b""
        answer = talk(
            url, "GET /healthz HTTP/1.1\nHost: localhost", [b"\r\n"]
        )  # one request, then nothing but an empty line
        assert answer.count(b"HTTP/1.1 200 ") == 1
        slow = talk(url, "GET /slow HTTP/1.1\nHost: localhost\nConnection: close")
        assert slow.startswith(b"HTTP/1.1 200 ")  # what is being answered may take longer
