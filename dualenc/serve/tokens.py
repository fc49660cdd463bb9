"""The bearer token: shown in the header Authorization, or in a cookie that POST /session gives for it.

An <img> cannot send a header, so the page trades the token for the cookie once. The cookie holds a number derived
from the token and not the token; scripts cannot read it and other sites cannot have it sent.
"""

from __future__ import annotations

import hashlib
import hmac

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from dualenc.serve.problems import Problem, responses


class Token:
    """The token that requests must show. Comparisons take the same time whatever is right about a guess."""

    def __init__(self, token: str):
        self._digest = _digest(token.encode())
        derived = hmac.new(token.encode(), b"dualenc session", hashlib.sha256).hexdigest()
        # Cookies do not know ports: two servers of one machine need two names
        self.cookie, self.value = f"dualenc_{derived[:8]}", derived[8:]

    def is_(self, guess: bytes) -> bool:
        """Whether this is the token."""
        return hmac.compare_digest(_digest(guess), self._digest)

    def shown(self, headers: list[tuple[bytes, bytes]]) -> bool:
        """Whether a request's raw headers show the token or its cookie."""
        for name, value in headers:
            if name == b"authorization":
                scheme, _, given = value.partition(b" ")
                if scheme.lower() == b"bearer" and self.is_(given.strip()):
                    return True
            elif name == b"cookie" and self._in_cookie(value):
                return True
        return False

    def _in_cookie(self, header: bytes) -> bool:
        name = self.cookie.encode() + b"="
        values = [part.strip()[len(name) :] for part in header.split(b";") if part.strip().startswith(name)]
        return any(hmac.compare_digest(value, self.value.encode()) for value in values[:4])


class Session(BaseModel):
    """What POST /session is sent."""

    model_config = ConfigDict(extra="forbid")
    token: str = Field(min_length=1, max_length=4096)


def router(token: Token) -> APIRouter:
    """POST /session gives the cookie, DELETE /session takes it back."""
    routes = APIRouter(tags=["server"])

    @routes.post("/session", status_code=204, responses=responses(401, 422))
    async def sign_in(session: Session, request: Request) -> Response:
        """Trade the token for a cookie, for what cannot send a header (<img>)."""
        if not token.is_(session.token.encode("utf-8", "surrogatepass")):
            raise Problem(401, "Wrong token", "This is not the token the server was started with.", CHALLENGE)
        response = Response(status_code=204)
        secure = request.url.scheme == "https"
        response.set_cookie(token.cookie, token.value, path="/", httponly=True, samesite="strict", secure=secure)
        return response

    @routes.delete("/session", status_code=204)
    async def sign_out() -> Response:
        """Have the browser forget the cookie."""
        response = Response(status_code=204)
        response.delete_cookie(token.cookie, path="/", httponly=True, samesite="strict")
        return response

    return routes


CHALLENGE = {"WWW-Authenticate": 'Bearer realm="dualenc"'}


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()  # of one length, so that not even that is told
