"""Every error is a problem document, and tells nothing of the server's inside."""

from __future__ import annotations

import json
import logging

import pytest
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.testclient import TestClient

from dualenc.serve import observe, problems
from dualenc.serve.problems import Problem
from dualenc.serve.settings import Settings


class Query(BaseModel):
    model_config = ConfigDict(extra="forbid")
    k: int
    terms: list[float] = []


@pytest.fixture(params=["problems first", "observe first"])
def client(request):
    app = FastAPI()
    parts = [problems.install, lambda app: observe.install(app, Settings(indexes={"a": "a"}))]
    for install in parts if request.param == "problems first" else parts[::-1]:
        install(app)

    @app.post("/search")
    def search(query: Query):
        if query.k == 7:
            raise Problem(409, "No rows", "the index has none; build it with rows", {"Retry-After": "3"}, index="a")
        if query.k == 8:
            raise RuntimeError("secret of /srv/index\nFORGED line")
        return {"k": query.k}

    @app.get("/gone")
    async def gone():
        raise ClientDisconnect()

    @app.get("/half")
    async def half():
        async def pieces():
            yield b"half"
            raise RuntimeError("secret")

        return StreamingResponse(pieces())

    return TestClient(app)


def check(reply, status: int) -> dict:
    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.headers["cache-control"] == "no-store"
    document = reply.json()
    assert document["status"] == status and document["title"] and document["type"] == "about:blank"
    assert document["instance"] == reply.headers["x-request-id"]
    return document


def test_a_problem_is_told_whole(client):
    reply = client.post("/search", json={"k": 7})
    document = check(reply, 409)
    assert document["detail"] == "the index has none; build it with rows"
    assert document["index"] == "a"
    assert reply.headers["retry-after"] == "3"


def test_frameworks_own_refusals(client):
    assert "path" in check(client.get("/nowhere/../etc/<b>"), 404)["detail"]
    reply = client.get("/search")
    assert "POST" in check(reply, 405)["detail"] and reply.headers["allow"] == "POST"
    assert "x" * 20 not in client.request("X" * 300, "/search").text.lower()


def test_bad_bodies_are_told_by_field_without_their_values(client):
    document = check(client.post("/search", json={"k": "hunter2", "terms": [0.5, "hunter2"], "kk": 1}), 422)
    assert {error["field"] for error in document["errors"]} == {"body.k", "body.terms.1", "body.kk"}
    assert "hunter2" not in json.dumps(document)
    assert all(error["problem"] for error in document["errors"])
    assert document["detail"].startswith("body.k: ")


def test_what_is_no_json(client):
    headers = {"content-type": "application/json"}
    for body in (b"{", b"", b"[" * 100_000, b"\xff\xfe", b'{"k": 1e999}', b'{"k": ' + b"9" * 5000 + b"}"):
        reply = client.post("/search", content=body, headers=headers)
        assert reply.status_code in (400, 422), body[:20]
        check(reply, reply.status_code)
    document = check(client.post("/search", content=b'{"k": nope', headers=headers), 422)
    assert document["errors"][0]["field"] == "body" and "JSON" in document["detail"]


def test_names_that_a_caller_made_up_stay_short_and_encode(client):
    reply = client.post("/search", json={"k": 1} | {f"{i}" + "x" * 5000: 1 for i in range(200)})
    document = check(reply, 422)
    assert len(reply.content) < 3000
    assert len(document["errors"]) == problems.MOST_ERRORS and "197 more" in document["detail"]
    body = json.dumps({"k": 1, "\ud800": 2})
    reply = client.post("/search", content=body, headers={"content-type": "application/json"})
    check(reply, reply.status_code)
    assert reply.status_code < 500
    assert Problem(400, "t", "\ud800").encoded()[1].isascii()


def test_the_unforeseen_is_logged_whole_and_told_without_its_words(client, capsys):
    reply = client.post("/search", json={"k": 8}, headers={"X-Request-ID": "mine-1"})
    document = check(reply, 500)
    assert "secret" not in reply.text and "Error" not in reply.text and "srv" not in reply.text
    assert document["instance"] == "mine-1"
    logged = capsys.readouterr().err
    assert "mine-1" in logged and "secret of /srv/index" in logged and "Traceback" in logged
    assert not any(line.lstrip().startswith("FORGED") for line in logged.splitlines())  # it hangs under its margin


def test_an_answer_that_breaks_off_is_cut_and_not_ended(client):
    with pytest.raises(RuntimeError, match="secret"):  # to the server, which closes the connection
        client.get("/half")


def test_a_caller_who_left_is_no_error(client, caplog):
    with caplog.at_level(logging.INFO):
        assert client.get("/gone").status_code == problems.CLOSED
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_responses_describe_what_is_sent():
    documented = problems.responses(404, 413)
    assert documented[404]["description"] == "Not Found"
    schema = documented[413]["content"]["application/problem+json"]["schema"]
    document = Problem(413, "t", "d").document()
    assert set(schema["required"]) <= set(document) <= set(schema["properties"])
