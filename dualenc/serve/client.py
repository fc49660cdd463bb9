"""`Client`: a running server in Python, without torch and without the server's own libraries."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx2 as httpx

from dualenc.serve.wire import Hits, as_term, encoded, read_hits, sent

if TYPE_CHECKING:
    import numpy as np

    from dualenc.serve.wire import Picture

__all__ = ["Client", "ServerError"]
LOCAL = ("127.0.0.1", "localhost", "::1")


class ServerError(RuntimeError):
    """A server that refused, failed or did not answer; its text is one line. status: of HTTP, None where none came."""

    def __init__(self, message: str, status: int | None = None, document: dict[str, Any] | None = None):
        super().__init__(message)
        self.status, self.document = status, document or {}


class Client:
    """A server at `url`. Connections are kept and shared: use one client, from as many threads as you like.

    token: what the server asks for. timeout: seconds for an answer, waiting for an encoder that still loads included.
    Every method raises ServerError where the server refuses or is not there.
    """

    def __init__(self, url: str = "http://127.0.0.1:8000", token: str | None = None, timeout: float = 30):
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no server's address; write one like http://127.0.0.1:8000")
        self.timeout = timeout
        self._http = httpx.Client(
            timeout=timeout,
            headers={"authorization": f"Bearer {token}"} if token else {},
            trust_env=parts.hostname not in LOCAL,  # a proxy cannot reach this machine's own addresses
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=60),
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def indexes(self) -> list[dict[str, Any]]:
        """What is served: name, rows, dim, recall, columns and more of each index, the default one first."""
        return self._json("GET", "indexes", list)

    def search(
        self,
        text: str | None = None,
        image: Picture | None = None,
        embedding: Any = None,
        *,
        id: int | None = None,
        image_url: str | None = None,
        terms: Iterable[Any] = (),
        index: str | None = None,
        k: int = 10,
        offset: int = 0,
        where: str | None = None,
        threshold: float | None = None,
        group_by: str | None = None,
        labels: Sequence[str] | None = None,
        templates: Sequence[str] | None = None,
        vectors: bool = False,
    ) -> Hits:
        """The k best rows for a text, an image, an embedding (D,), a row by its id, or several of these together.

        terms: more parts, each {"weight": -1, "text" | "image" | "image_url" | "embedding" | "id": …} (weight 1 where
        left out) or a (weight, kind, value). labels: have each hit labelled with the one that fits best, by the prompts
        of `templates`. vectors: send the rows themselves, too. The rest is as in `dualenc.Index.page`.
        """
        given = {"text": text, "image": image, "embedding": embedding, "id": id, "image_url": image_url}
        parts = [{kind: value} for kind, value in given.items() if value is not None] + [
            as_term(term) for term in terms
        ]
        uploads: list[bytes] = []
        query: dict[str, Any] = {
            "index": index,
            "k": k,
            "offset": offset,
            "where": where,
            "threshold": threshold,
            "group_by": group_by,
        }
        query |= {"labels": _listed(labels), "templates": _listed(templates), "vectors": vectors}
        query["terms"] = [sent(part, uploads) for part in parts]
        return self._ask("search", query, uploads, read_hits)

    def item(self, id: int, index: str | None = None) -> dict[str, Any]:
        """One row: {"id", "image", "metadata"}."""
        return self._json("GET", f"items/{id}", dict, params=_given(index=index))

    def similar(
        self,
        id: int,
        index: str | None = None,
        k: int = 10,
        offset: int = 0,
        where: str | None = None,
        threshold: float | None = None,
        group_by: str | None = None,
    ) -> Hits:
        """The k rows nearest to one, itself left out."""
        asked = _given(index=index, k=k, offset=offset, where=where, threshold=threshold, group_by=group_by)
        return self._json("GET", f"items/{id}/similar", read_hits, params=asked)

    def image(self, id: int, size: int | None = None, index: str | None = None) -> bytes:
        """A row's picture as an encoded image, its longer side `size` pixels at most."""
        return self._send("GET", f"items/{id}/image", params=_given(index=index, size=size)).content

    def classify(
        self,
        image: Picture,
        classes: Sequence[str],
        templates: Sequence[str] | None = None,
        k: int = 5,
        index: str | None = None,
    ) -> list[dict[str, Any]]:
        """The k classes that fit an image best: {"name", "score", "probability"} of each."""
        query = {"index": index, "classes": list(classes), "templates": _listed(templates), "k": k}
        return self._ask("classify", query, [encoded(image)], lambda reply: reply["classes"])

    def embed_texts(self, texts: Sequence[str], index: str | None = None) -> np.ndarray:
        """(N, D) float32 unit rows, as the server's encoder makes them."""
        import numpy as np

        query = {"index": index, "texts": list(texts)}
        return self._ask("embed", query, [], lambda reply: np.array(reply["texts"], np.float32))

    def embed_images(self, images: Sequence[Picture], index: str | None = None) -> np.ndarray:
        """(N, D) float32 unit rows, as the server's encoder makes them."""
        import numpy as np

        uploads = [encoded(image) for image in images]
        return self._ask("embed", {"index": index}, uploads, lambda reply: np.array(reply["images"], np.float32))

    def ready(self) -> dict[str, Any]:
        """Per index: rows, generation, and whether its encoder is "ready", "loading", "none" or "failed"."""
        response = self._sent("GET", "readyz", {})
        if response.status_code not in (200, 503) or "problem" in response.headers.get("content-type", ""):
            raise self._refused(response)
        return _object(response)

    def _ask(self, path: str, query: dict[str, Any], uploads: list[bytes], take: Callable[[Any], Any]) -> Any:
        """Post a query, as a form where pictures go with it; what `take` makes of the answer."""
        query = {name: value for name, value in query.items() if value is not None}
        if not uploads:
            return self._json("POST", path, take, json=query)
        files = [("query", (None, json.dumps(query).encode(), "application/json"))]
        pictures = [("image", (f"{n}", data, "application/octet-stream")) for n, data in enumerate(uploads)]
        return self._json("POST", path, take, files=files + pictures)

    def _json(self, method: str, path: str, take: Callable[[Any], Any], **request: Any) -> Any:
        response = self._send(method, path, **request)
        try:
            return take(response.json())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ServerError(
                f"{self.url} is not a dualenc server: what it answers at /{path} is something else"
            ) from None

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Send until it is answered, within the timeout: a server may be busy, or still load its encoder."""
        end = time.monotonic() + self.timeout
        while True:
            response = self._sent(method, path, request)
            if response.is_success:
                return response
            pause = _pause(response)
            if pause is None or time.monotonic() + pause > end:
                raise self._refused(response)
            time.sleep(pause)

    def _sent(self, method: str, path: str, request: dict[str, Any]) -> httpx.Response:
        for last in (
            False,
            True,
        ):  # a kept connection may be closed just when it is used again: nothing was changed by it
            try:
                return self._http.request(method, f"{self.url}/{path}", **request)
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as error:
                if last:
                    raise ServerError(
                        f"{self.url} broke off the connection ({_why(error)}); its log tells why"
                    ) from error
            except httpx.TimeoutException as error:
                raise ServerError(
                    f"{self.url} did not answer within {self.timeout:g} s; try again, or wait longer"
                ) from error
            except httpx.ConnectError as error:
                cure = "is `dualenc serve` running there?"
                raise ServerError(f"{self.url} cannot be reached ({_why(error)}); {cure}") from error
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise ServerError(f"{self.url}/{path}: {_why(error)}") from error
        raise AssertionError

    def _refused(self, response: httpx.Response) -> ServerError:
        document = _object(response)
        title = str(document.get("title") or response.reason_phrase or "refused")
        words = " ".join(str(document.get("detail") or "").split())
        if response.status_code == 401 and not words:
            words = "it asks for a token; give the right one"
        text = (
            f"{self.url}: {words} ({response.status_code} {title})"
            if words
            else f"{self.url}: {response.status_code} {title}"
        )
        return ServerError(text, response.status_code, document)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _listed(values: Sequence[str] | None) -> list[str] | None:
    return None if values is None else list(values)


def _object(response: httpx.Response) -> dict[str, Any]:
    try:
        found = response.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _pause(response: httpx.Response) -> float | None:
    """Seconds after which a server asks to be tried again; None where it does not."""
    if response.status_code not in (429, 503):
        return None
    try:
        return max(0.05, float(response.headers["retry-after"]))
    except (KeyError, ValueError):
        return None


def _why(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
