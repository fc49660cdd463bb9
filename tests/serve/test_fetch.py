"""URLs that a caller names: fetched from public addresses only, and never more than was asked for."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import shutil
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path

import pytest

from dualenc.serve import addresses, fetch
from dualenc.serve.problems import Problem
from dualenc.serve.settings import Settings

ON = Settings(indexes={"a": Path("a")}, fetch_urls=True, max_body=10_000)
PICTURE = b"\x89PNG picture"


def refused(url: str, status: int, settings: Settings = ON) -> Problem:
    with pytest.raises(Problem) as found:
        asyncio.run(fetch.fetch_image(url, settings))
    assert found.value.status == status, (found.value.status, found.value.detail)
    assert "127.0.0.1" not in found.value.detail and "\n" not in found.value.detail
    return found.value


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Names that are no address are unknown here, and nothing that a test did not start is asked."""
    real = socket.getaddrinfo

    def look_up(host, port, **options):
        return real(host, port, **options, flags=socket.AI_NUMERICHOST)

    monkeypatch.setattr(fetch.socket, "getaddrinfo", look_up)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.path, self.headers["Host"], dict(self.headers)))
        status, headers, pieces = self.server.answers.get(self.path, (404, {}, []))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            for piece in pieces() if callable(pieces) else pieces:
                self.wfile.write(piece)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def upstream(context: ssl.SSLContext | None = None):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.asked = []
    server.answers = {"/a.png": (200, {"Content-Type": "image/png"}, [PICTURE])}
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


class Names:
    """A name server of the test's: addresses by name; each look-up takes the next list, and the last one stays."""

    def __init__(self, monkeypatch, **names):
        self.names, self.asked = names, []
        monkeypatch.setattr(fetch.socket, "getaddrinfo", self.look_up)

    def look_up(self, host, port, **_):
        self.asked.append(host)
        found = self.names.get(host.replace(".", "_"), [[host]])
        addresses = found.pop(0) if len(found) > 1 else found[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]


@pytest.fixture
def site(monkeypatch):
    """A web site pictures.example on this machine, which counts as public; everything else of this machine does not."""
    with upstream() as server:
        port = server.server_port
        monkeypatch.setattr(fetch, "PORTS", (80, 443, port))
        monkeypatch.setattr(addresses, "public", lambda text: text == "127.0.0.1")
        monkeypatch.setattr(addresses, "own", lambda text: False)
        server.names = Names(monkeypatch, pictures_example=[["127.0.0.1"]], inside_example=[["10.0.0.7"]])
        server.url = f"http://pictures.example:{port}"
        yield server


def get(url: str, settings: Settings = ON) -> bytes:
    return asyncio.run(fetch.fetch_image(url, settings))


# addresses

PRIVATE = """\
0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.127.255.255 127.0.0.1 127.255.255.255 169.254.169.254 172.16.0.1
172.31.255.255 192.0.0.1 192.0.0.170 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1
224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 :: ::1 ::ffff:127.0.0.1 ::ffff:8.8.8.8 ::127.0.0.1 64:ff9b::7f00:1
64:ff9b:1::1 100::1 2001::1 2001:db8::1 2002:7f00:1:: 2002:a00:1:: 3fff::1 5f00::1 fc00::1 fd00:ec2::254 fe80::1 fe80::1%eth0
fec0::1 ff02::1 2606:4700::1%1"""
PUBLIC = """\
8.8.8.8 1.1.1.1 93.184.216.34 100.63.255.255 100.128.0.1 172.15.0.1 172.32.0.1 169.253.1.1 192.167.1.1 198.17.0.1
223.255.255.255 2606:4700:4700::1111 2a00:1450:4001::1 2001:4860:4860::8888"""


def test_what_is_public():
    assert [address for address in PRIVATE.split() if addresses.public(address)] == []
    assert [address for address in PUBLIC.split() if not addresses.public(address)] == []
    for text in ("", "localhost", "127.1", "0177.0.0.1", "2130706433", "8.8.8.8 ", "8.8.8.8/0", "[::1]"):
        assert not addresses.public(text)


def test_addresses_of_this_machine():
    assert addresses.own("127.0.0.1") and not addresses.own("8.8.8.8") and not addresses.own("nonsense")


@pytest.mark.parametrize(
    "host",
    [
        "0.0.0.0",
        "0",
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "017700000001",
    ]
    + ["[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:127.0.0.1]", "[64:ff9b::127.0.0.1]"]
    + ["169.254.169.254", "[fd00:ec2::254]", "10.0.0.1", "192.168.0.1", "172.16.0.1", "100.100.100.200", "224.0.0.1"]
    + ["[fe80::1]", "255.255.255.255", "127.0.0.1.", "１２７.0.0.1", "①②⑦.⓪.⓪.①"],
)
def test_private_addresses_in_every_spelling(host, monkeypatch):
    async def never(*_):
        raise AssertionError("asked")

    monkeypatch.setattr(fetch, "_ask", never)
    problem = refused_any(f"http://{host}/a.png")
    assert problem.status in (400, 422)


def refused_any(url: str) -> Problem:
    with pytest.raises(Problem) as found:
        get(url)
    return found.value


def test_plain_private_addresses_are_forbidden_by_name():
    for host in ("127.0.0.1", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "0.0.0.0"):
        assert "private" in refused(f"http://{host}/", 422).detail


# the flag and the URL


def test_off_by_default():
    settings = Settings(indexes={"a": Path("a")})
    assert "--fetch-urls" in refused("http://pictures.example/a.png", 403, settings).detail


@pytest.mark.parametrize(
    "url",
    [
        "",
        "a.png",
        "/etc/passwd",
        "file:///etc/passwd",
        "ftp://a.example/a",
        "gopher://a.example/",
        "data:image/png;base64,AA==",
    ]
    + [
        "http://",
        "http:///a",
        "http://user@a.example/",
        "http://a:b@a.example/",
        "http://8.8.8.8:22/",
        "http://a.example:0/",
    ]
    + ["http://a.example:99999/", "http://a.example:x/", "http://a.example\\@b.example/", "http://a.example/\r\nX: y"]
    + [
        "http://a b/",
        "http://a.example/\x00",
        " http://a.example/",
        "http://[::1/",
        "http://" + "a" * 3000,
        "unix:/run/x",
    ]
    + ["jar:http://a.example/!/", "http://a.example:6379/"],
)
def test_urls_that_are_none(url, monkeypatch):
    names = Names(monkeypatch)
    refused(url, 400)
    assert names.asked == []


def test_unknown_names():
    assert "unknown" in refused("http://pictures.example/", 422).detail
    for host in ("a" * 70 + ".example", "a..example", "xn--a.example", ".", "-"):
        assert refused_any(f"http://{host}/").status in (400, 422)


# fetching


def test_a_picture_is_fetched_with_the_names_own_host(site):
    assert get(site.url + "/a.png#part") == PICTURE
    ((path, host, headers),) = site.asked
    assert path == "/a.png" and host == site.url[len("http://") :]
    assert headers["Accept-Encoding"] == "identity" and "Cookie" not in headers and "Authorization" not in headers


def test_a_name_that_changes_its_address_is_asked_once(site, monkeypatch):
    """DNS rebinding: the first answer is public, the second is this machine."""
    seen = []
    monkeypatch.setattr(addresses, "public", lambda text: seen.append(text) or text == "127.0.0.1")
    names = Names(monkeypatch, pictures_example=[["127.0.0.1"], ["10.0.0.1"]])
    assert get(site.url + "/a.png") == PICTURE
    assert names.asked == ["pictures.example"] and seen == ["127.0.0.1"]


def test_one_private_address_among_others_is_enough(site, monkeypatch):
    for found in (["127.0.0.1", "10.0.0.1"], ["10.0.0.1", "127.0.0.1"]):
        Names(monkeypatch, pictures_example=[found])
        refused(site.url + "/a.png", 422)
    assert site.asked == []


def test_this_machines_own_public_address_is_not_asked(site, monkeypatch):
    monkeypatch.setattr(addresses, "own", lambda text: text == "127.0.0.1")
    refused(site.url + "/a.png", 422)
    assert site.asked == []


def test_redirects_are_followed_and_checked_anew(site):
    port = site.server_port
    site.answers["/moved"] = (302, {"Location": "/a.png"}, [])
    assert get(site.url + "/moved") == PICTURE
    targets = {
        f"http://inside.example:{port}/a.png": 422,
        "http://10.0.0.1/": 422,
        "//10.0.0.1/a": 422,
        "file:///etc/passwd": 400,
        "http://pictures.example:22/": 400,
        f"http://user@pictures.example:{port}/a.png": 400,
        "http://[": 400,
    }
    for target, status in targets.items():
        site.answers["/moved"] = (301, {"Location": target}, [])
        refused(site.url + "/moved", status)
    site.answers["/moved"] = (307, {"Location": "/moved"}, [])
    assert "redirects" in refused(site.url + "/moved", 422).detail


def endless():
    while True:
        yield b"x" * 4096


def drip():
    while True:
        yield b"x"
        time.sleep(0.02)


def test_bodies_are_bounded_whatever_they_say(site):
    image = {"Content-Type": "image/png"}
    site.answers["/long"] = (200, image | {"Content-Length": "10001"}, [b"x"])
    site.answers["/endless"] = (200, image, endless)
    site.answers["/full"] = (200, image, [b"x" * 10_000])
    refused(site.url + "/long", 413)
    refused(site.url + "/endless", 413)
    assert len(get(site.url + "/full")) == 10_000


def test_time_is_bounded_too(site, monkeypatch):
    monkeypatch.setattr(fetch, "SECONDS", 0.3)
    site.answers["/slow"] = (200, {"Content-Type": "image/png"}, drip)
    refused(site.url + "/slow", 422)
    monkeypatch.setattr(fetch.socket, "getaddrinfo", lambda *_, **__: time.sleep(0.6))
    refused(site.url + "/a.png", 422)


def test_what_is_no_picture(site):
    site.answers["/page"] = (200, {"Content-Type": "text/html; charset=utf-8"}, [b"<html>"])
    site.answers["/packed"] = (200, {"Content-Type": "image/png", "Content-Encoding": "gzip"}, [b"\x1f\x8b"])
    site.answers["/error"] = (500, {"Content-Type": "image/png"}, [b"secret of the inside"])
    site.answers["/short"] = (200, {"Content-Type": "image/png", "Content-Length": "50"}, [b"x"])
    site.answers["/bare"] = (200, {}, [PICTURE])
    refused(site.url + "/page", 415)
    refused(site.url + "/packed", 422)
    assert "secret" not in refused(site.url + "/error", 422).detail
    refused(site.url + "/nowhere", 422)
    refused(site.url + "/short", 422)
    assert get(site.url + "/bare") == PICTURE


def test_a_server_that_speaks_something_else(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def speak():
            wire = listener.accept()[0]
            wire.recv(1000)
            wire.sendall(b"SSH-2.0-x\r\n")
            wire.close()

        thread = threading.Thread(target=speak)
        thread.start()
        monkeypatch.setattr(fetch, "PORTS", (port,))
        monkeypatch.setattr(addresses, "public", lambda text: True)
        monkeypatch.setattr(addresses, "own", lambda text: False)
        assert "SSH" not in refused(f"http://127.0.0.1:{port}/", 422).detail
        thread.join()
    assert "reached" in refused(f"http://127.0.0.1:{port}/", 422).detail  # nobody listens


def test_an_address_that_does_not_answer_is_not_the_last(site, monkeypatch):
    Names(monkeypatch, pictures_example=[["127.0.0.9", "127.0.0.1"]])
    monkeypatch.setattr(addresses, "public", lambda text: text.startswith("127."))
    assert get(site.url + "/a.png") == PICTURE


def test_proxies_of_the_environment_are_not_used(site, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert get(site.url + "/a.png") == PICTURE


def test_few_at_once(site, monkeypatch):
    monkeypatch.setattr(fetch, "_running", fetch.AT_ONCE)
    problem = refused(site.url + "/a.png", 503)
    assert problem.headers["Retry-After"] == "1"
    monkeypatch.setattr(fetch, "_running", 0)
    refused(site.url + "/nowhere", 422)
    assert fetch._running == 0


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl to make a certificate")
def test_certificates_are_the_names_and_not_the_addresses(tmp_path, monkeypatch):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=x"
    names = ["-addext", "subjectAltName=DNS:pictures.example", "-keyout", key, "-out", certificate]
    subprocess.run([*command.split(), *names], check=True, capture_output=True, timeout=30)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    asked = []
    context.sni_callback = lambda wire, name, context: asked.append(name)
    monkeypatch.setattr(fetch, "_certificates", lambda: ssl.create_default_context(cafile=certificate))
    monkeypatch.setattr(addresses, "public", lambda text: True)
    monkeypatch.setattr(addresses, "own", lambda text: False)
    Names(monkeypatch, pictures_example=[["127.0.0.1"]], other_example=[["127.0.0.1"]])
    with upstream(context) as server:
        monkeypatch.setattr(fetch, "PORTS", (server.server_port,))
        assert get(f"https://pictures.example:{server.server_port}/a.png") == PICTURE
        assert asked == ["pictures.example"]
        for host in ("other.example", "127.0.0.1"):
            refused(f"https://{host}:{server.server_port}/a.png", 422)
        assert len(server.asked) == 1
