"""The OpenAPI schema: complete, true, and a page without scripts; and schemathesis, which looks for requests that break it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from html.parser import HTMLParser

import httpx2 as httpx
import jsonschema_rs
import pytest
from hypothesis import given, settings

from dualenc.serve.routes.docs_page import _type
from tests.serve.conftest import problem, served
from tests.serve.fakes import use_fake_encoders
from tests.serve.running import in_thread

CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")
OPERATIONS = [
    "GET /healthz",
    "GET /indexes",
    "GET /indices-list",
    "GET /items/{id}",
    "GET /items/{id}/image",
    "GET /items/{id}/similar",
    "GET /metrics",
    "GET /metrics-summary",
    "GET /readyz",
    "POST /classify",
    "POST /embed",
    "POST /knn-service",
    "POST /metadata",
    "POST /search",
]


@pytest.fixture(scope="module")
def schema(client):
    response = client.get("/openapi.json")
    assert response.headers["content-type"] == "application/json"
    return response.json()


def operations(schema):
    return {
        f"{method.upper()} {path}": one for path, methods in schema["paths"].items() for method, one in methods.items()
    }


def test_all_operations_are_there_and_told(schema):
    found = operations(schema)
    assert sorted(found) == OPERATIONS
    known = {tag["name"] for tag in schema["tags"]}
    for name, one in found.items():
        assert one["summary"], name
        assert one["tags"][0] in known, name
    ids = [one["operationId"] for one in found.values()]
    assert len(set(ids)) == len(ids)


def test_all_references_lead_somewhere(schema):
    names = re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(schema))
    assert len(set(names)) > 10
    assert set(names) <= set(schema["components"]["schemas"])


def test_all_errors_are_problem_documents(schema):
    for name, one in operations(schema).items():
        for status, answer in one["responses"].items():
            if status[0] in "45" and (name, status) != ("GET /readyz", "503"):
                assert list(answer["content"]) == ["application/problem+json"], (name, status)
                assert answer["content"]["application/problem+json"]["schema"] == {
                    "$ref": "#/components/schemas/Problem"
                }


def test_each_field_of_a_request_is_described(schema):
    for name in ("SearchRequest", "ClassifyRequest", "Term", "Hit", "IndexInfo"):
        for field, about in schema["components"]["schemas"][name]["properties"].items():
            assert about.get("description") or about.get("examples") or "$ref" in json.dumps(about), (name, field)


def test_the_examples_are_answered(client, schema):
    examples = schema["components"]["schemas"]["SearchRequest"]["examples"]
    assert len(examples) == 2
    for example in examples:
        assert client.post("/search", json=example).status_code == 200
    for example in schema["components"]["schemas"]["EmbedRequest"]["examples"]:
        assert client.post("/embed", json=example).status_code == 200


def test_replies_are_as_the_schema_says(client, schema):
    search = {"text": "a", "k": 24, "vectors": True, "labels": ["a", "b"]}
    replies = {
        "SearchReply": client.post("/search", json=search),
        "Item": client.get("/items/3"),
        "EmbedReply": client.post("/embed", json={"texts": ["a"]}),
        "Problem": client.post("/search", json={"k": 0}),
    }
    for name, reply in replies.items():
        jsonschema_rs.validate(
            {"$ref": f"#/components/schemas/{name}", "components": schema["components"]}, reply.json()
        )
    for one in client.get("/indexes").json():
        jsonschema_rs.validate({"$ref": "#/components/schemas/IndexInfo", "components": schema["components"]}, one)


def test_what_a_token_and_a_rate_add(indexes, monkeypatch):
    with served(indexes, monkeypatch, token="secret", rate=1000.0) as client:
        problem(client.get("/openapi.json"), 401)
        found = operations(client.get("/openapi.json", headers={"Authorization": "Bearer secret"}).json())
        for name, one in found.items():
            assert {"401", "429"} <= set(one["responses"]), name
            assert bool(one.get("security")) == (name.split()[1] not in ("/healthz", "/readyz", "/session")), name


class Page(HTMLParser):
    """Tags, ids, and what a page refers to."""

    def __init__(self):
        super().__init__()
        self.tags, self.ids, self.links, self.styled = [], [], [], []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found[name] for name in ("href", "src") if name in found]
        self.styled += [name for name in found if name == "style" or name.startswith("on")]


def test_the_docs_page_asks_no_other_host_and_runs_nothing(client):
    response = client.get("/docs")
    assert response.headers["content-type"].startswith("text/html")
    page = Page()
    page.feed(response.text)
    assert "script" not in page.tags and "style" not in page.tags and not page.styled
    assert all(link.startswith(("/", "#")) and not link.startswith("//") for link in page.links)
    assert len(set(page.ids)) == len(page.ids)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    for name in OPERATIONS:
        assert f"<code>{name}</code>" in response.text
    for link in {link for link in page.links if link.startswith("/")}:
        assert client.get(link).status_code == 200, link
    assert client.get("/docs.css").headers["content-type"].startswith("text/css")


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 1000}, "integer (1 to 1,000)"),
        ({"type": "string", "maxLength": 5}, "string (up to 5 characters)"),
        ({"type": "array", "items": {"type": "number"}, "minItems": 2}, "list of number (2 or more of them)"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "string or null"),
        ({"type": ["string", "null"]}, "string or null"),
        ({"enum": ["<a>", None]}, "<code>&quot;&lt;a&gt;&quot;</code> or <code>null</code>"),
        ({"$ref": "#/components/schemas/Term"}, '<a href="#Term">Term</a>'),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, "object of integer"),
        ({}, "anything"),
    ],
)
def test_a_shape_in_words(shape, words):
    assert _type(shape) == words


@pytest.fixture(scope="module")
def url(indexes):
    """The address of a server of its own, ready."""
    from dualenc.serve.app import create_app
    from dualenc.serve.settings import Settings

    with pytest.MonkeyPatch.context() as monkeypatch:
        use_fake_encoders(monkeypatch)
        with in_thread(create_app(Settings(indexes))) as url:
            while httpx.get(f"{url}/readyz").status_code != 200:
                time.sleep(0.01)
            yield url


@pytest.mark.parametrize("operation", OPERATIONS)
def test_schemathesis(url, operation):
    """A few requests of each kind, fit and unfit; the whole run is below."""
    import schemathesis
    from schemathesis.checks import CHECKS as known

    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    method, path = operation.split()
    checks = [known.get_one(name) for name in CHECKS]
    asks = method == "POST" or "{" in path  # without body and parameters there is nothing to get wrong
    for mode in list(schemathesis.GenerationMode) if asks else [schemathesis.GenerationMode.POSITIVE]:

        @settings(max_examples=8, database=None)
        @given(case=schema[path][method].as_strategy(generation_mode=mode))
        def run(case):
            case.call_and_validate(checks=checks)

        run()


@pytest.mark.full
@pytest.mark.parametrize(
    ("phases", "checks"),
    [
        ("examples,coverage,fuzzing", [*CHECKS, "negative_data_rejection", "unsupported_method"]),
        # sequences of requests make a value null and call it wrong, where null is allowed
        ("stateful", [*CHECKS, "unsupported_method"]),
    ],
)
def test_schemathesis_whole(url, tmp_path, phases, checks):
    """All of its phases, negative data and sequences of requests included."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--max-examples", "200"]
    command += ["--phases", phases, "--checks", ",".join(checks), "--continue-on-failure"]
    done = subprocess.run(
        [*command, "--suppress-health-check", "all"], cwd=tmp_path, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stdout[-20_000:]
    assert "Tested: 14" in done.stdout or (phases == "stateful" and "Scenarios" in done.stdout)
