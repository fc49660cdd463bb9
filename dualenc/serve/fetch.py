"""Pictures from URLs that a caller names: from public addresses only, whatever a name, a redirect or a DNS server says.

A name is resolved once, all its addresses are checked, and the connection goes to one of those very addresses; the
Host header and the TLS certificate stay those of the name.
"""

from __future__ import annotations

import asyncio
import functools
import re
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from dualenc.serve import addresses
from dualenc.serve.observe import stage
from dualenc.serve.problems import Problem

if TYPE_CHECKING:
    import httpx2 as httpx

    from dualenc.serve.settings import Settings

SECONDS = 10.0  # for all of it: names, redirects, bytes
CONNECT = 4.0
REDIRECTS = 3
LONGEST = 2048  # letters of a URL
PORTS = (80, 443, 8080, 8443)
AT_ONCE = 8  # fetches of one process
TYPES = ("image/", "application/octet-stream", "binary/octet-stream")
TRIES = 3  # addresses of one name that are tried
_HOST = re.compile(rb"[A-Za-z0-9._:-]+")
_running = 0


async def fetch_image(url: str, settings: Settings) -> bytes:
    """The bytes at a URL. They are no picture yet: `uploads.picture` decides.

    Problem 403: fetching is off; 400: no such URL; 413, 415: too many bytes, or no image; 422: it could not be fetched,
    not in time, or not from a public address; 503: others are being fetched.
    """
    global _running
    if not settings.fetch_urls:
        raise Problem(403, "URLs are not fetched", "Send the picture itself; --fetch-urls has the server fetch URLs.")
    if _running >= AT_ONCE:
        raise Problem(503, "Busy", "Other pictures are being fetched; ask again soon.", {"Retry-After": "1"})
    _running += 1
    try:
        with stage("fetch"):
            return await asyncio.wait_for(_follow(url, settings.max_body), SECONDS)
    except (asyncio.TimeoutError, TimeoutError):
        raise Problem(422, "Not fetched in time", f"The URL did not answer within {SECONDS:g} s.") from None
    finally:
        _running -= 1


async def _follow(text: str, limit: int) -> bytes:
    """GET, and go where redirects lead; each is checked as the first URL is."""
    import httpx2 as httpx

    url = _parsed(text)
    for _ in range(REDIRECTS + 1):
        found = await _get(url, limit)
        if isinstance(found, bytes):
            return found
        try:
            url = _parsed(str(url.join(found)))
        except httpx.InvalidURL:
            raise _bad("it redirects to what is no URL") from None
    raise Problem(422, "Not fetched", f"The URL redirects more than {REDIRECTS} times.")


def _parsed(text: str) -> httpx.URL:
    """A URL that may be asked for, as far as it tells by itself. Problem 400."""
    import httpx2 as httpx

    if len(text) > LONGEST:
        raise _bad(f"it is longer than {LONGEST} letters")
    if any(ord(letter) <= 0x20 or letter in "\\\x7f" for letter in text):
        raise _bad("it has spaces, control characters or backslashes")
    try:
        url = httpx.URL(text)
        port = url.port  # a number that is none raises here
    except (httpx.InvalidURL, ValueError, UnicodeError):
        raise _bad("it does not parse") from None
    if url.scheme not in ("http", "https"):
        raise _bad("only http and https are fetched")
    if url.userinfo:
        raise _bad("it holds a user name; leave that out")
    if not _HOST.fullmatch(url.raw_host):
        raise _bad("it names no host")
    if port is not None and port not in PORTS:
        raise _bad(f"only ports {', '.join(map(str, PORTS))} are asked")
    return url.copy_with(fragment=None)


async def _get(url: httpx.URL, limit: int) -> bytes | str:
    """The bytes at a URL, or where it redirects to."""
    import httpx2 as httpx

    port = url.port or (443 if url.scheme == "https" else 80)
    targets = await _resolved(url.raw_host.decode("ascii"), port)
    for target in targets[:TRIES]:
        try:
            return await _ask(url, target, limit)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            continue
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError):
            raise Problem(422, "Not fetched", "The URL's server broke off, or does not speak HTTP.") from None
    raise Problem(422, "Not fetched", "The URL's server could not be reached.")


async def _resolved(host: str, port: int) -> list[str]:
    """The addresses of a host, each of them public. One that is not refuses the name: what it means is no accident."""
    loop = asyncio.get_running_loop()
    look_up = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    try:
        found = await loop.run_in_executor(_resolver(), look_up)
    except (OSError, UnicodeError):
        raise _not_public() from None
    targets = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for target in targets:
        if not addresses.public(target) or addresses.own(target):
            raise _not_public()
    return targets


def _not_public() -> Problem:
    """One answer for both: it must not tell which names a private network has."""
    return Problem(422, "Not fetched", "The URL's host is unknown, or its address is private; public ones are fetched.")


async def _ask(url: httpx.URL, address: str, limit: int) -> bytes | str:
    """GET a URL from one address. httpx would look the name up again: it is given the address in the name's place."""
    import httpx2 as httpx

    headers = {
        "Host": url.netloc.decode("ascii"),
        "Accept": "image/*",
        "Accept-Encoding": "identity",  # what is packed could unpack to anything
        "User-Agent": "dualenc",
    }
    options: dict[str, Any] = {"trust_env": False, "follow_redirects": False, "verify": _certificates()}
    timeout = httpx.Timeout(SECONDS, connect=CONNECT)
    async with httpx.AsyncClient(timeout=timeout, **options) as client:
        asked = url.copy_with(host=address)
        extensions = {"sni_hostname": url.raw_host.decode("ascii")} if url.scheme == "https" else {}
        async with client.stream("GET", asked, headers=headers, extensions=extensions) as response:
            if response.status_code in (301, 302, 303, 307, 308) and "location" in response.headers:
                return str(response.headers["location"])
            _check(response, limit)
            data = bytearray()
            async for chunk in response.aiter_raw():
                data += chunk
                if len(data) > limit:
                    raise _too_large(limit)
            return bytes(data)


def _check(response: httpx.Response, limit: int) -> None:
    """What an answer's head tells. Its status is not told on: it is nobody's way to look at other servers."""
    if response.status_code != 200:
        raise Problem(422, "Not fetched", "The URL's server did not give the picture.")
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(422, "Not fetched", "The URL's server sent the picture packed, unasked.")
    kind = response.headers.get("content-type", "image/").lower()
    if not kind.startswith(TYPES):
        raise Problem(415, "Not a picture", "The URL's server says that it is no image.")
    length = response.headers.get("content-length", "")
    if length.isdigit() and int(length[:20]) > limit:
        raise _too_large(limit)


def _bad(why: str) -> Problem:
    return Problem(400, "URL not accepted", f"The URL is not fetched: {why}.")


def _too_large(limit: int) -> Problem:
    return Problem(413, "Picture too large", f"The URL has more than {limit:,} bytes.", max_bytes=limit)


@functools.cache
def _certificates() -> ssl.SSLContext:
    import certifi

    return ssl.create_default_context(cafile=certifi.where())  # tens of ms, once


@functools.cache
def _resolver() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(AT_ONCE, thread_name_prefix="resolve")  # a slow name server holds up nothing else
