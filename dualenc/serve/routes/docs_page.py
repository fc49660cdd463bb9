"""An OpenAPI schema as one HTML page."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable
from typing import Any

REFERENCE = "#/components/schemas/"
STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 20%, transparent); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
code, pre { font: 0.875em/1.5 ui-monospace, monospace; }
pre { overflow-x: auto; padding: 0.75rem; border: 1px solid var(--line); border-radius: 0.5rem; white-space: pre-wrap; }
h2 { margin-top: 3rem; }
section { border-top: 1px solid var(--line); margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin-bottom: 1rem; }
caption { text-align: left; font-weight: 700; }
th, td { text-align: left; vertical-align: top; padding: 0.25rem 1rem 0.25rem 0; border-bottom: 1px solid var(--line); }
td:first-child { min-width: 7rem; }
th { font-weight: 400; opacity: 0.75; }
nav ul { columns: 16rem; padding-left: 1.2rem; }
@media (max-width: 40rem) {
  thead { display: none; }
  tr, td { display: block; }
  tr { border-bottom: 1px solid var(--line); padding: 0.25rem 0; }
  td { border: 0; padding: 0; }
}
"""
_BOUNDS = {
    "integer": ("minimum", "maximum", ""),
    "number": ("minimum", "maximum", ""),
    "string": ("minLength", "maxLength", " characters"),
    "array": ("minItems", "maxItems", " of them"),
}
Row = tuple[str, str, str]  # HTML of three cells


def page(schema: dict[str, Any]) -> str:
    """The whole page. schema: all of its groups have a tag, all errors the shape `Problem`."""
    groups: dict[str, list[tuple[str, str, dict[str, Any]]]] = {tag["name"]: [] for tag in schema["tags"]}
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            groups[operation["tags"][0]].append((method.upper(), path, operation))
    links = "".join(
        f'<li><a href="#{_anchor(method, path)}">{_code(f"{method} {path}")}</a></li>'
        for operations in groups.values()
        for method, path, _ in operations
    )
    title = html.escape(schema["info"]["title"])
    parts = [
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}: API</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="stylesheet" href="/docs.css">'
        f'<link rel="icon" href="/icon.svg"></head><body><header><h1>{title}: API</h1>'
        f'{_text(schema["info"]["description"])}<p>For programs: <a href="/openapi.json">openapi.json</a>. '
        f'For people: <a href="/">the search page</a>.</p></header><nav aria-label="Addresses"><ul>{links}</ul></nav><main>'
    ]
    for tag in schema["tags"]:
        parts.append(f"<h2>{html.escape(tag['description'])}</h2>")
        parts += [_operation(*operation) for operation in groups[tag["name"]]]
    shapes = schema["components"]["schemas"]
    parts += ["<h2>Shapes</h2>", *(_shape(name, shapes[name]) for name in sorted(shapes))]
    return "".join([*parts, "</main></body></html>\n"])


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    parameters = [
        (_code(one["name"]), f"{_type(one['schema'])}, in {one['in']}", _inline(_meaning(one)))
        for one in operation.get("parameters", [])
    ]
    body = [
        (_code(kind), _type(content["schema"]), "")
        for kind, content in operation.get("requestBody", {}).get("content", {}).items()
    ]
    answers: list[Row] = []
    refusals: list[Row] = []
    for status, answer in operation["responses"].items():
        for kind, content in (answer.get("content") or {"": {}}).items():
            shape = _type(content.get("schema", {})) if kind == "application/json" else _code(kind)
            row = (_code(status), shape, _inline(answer["description"]))
            (refusals if kind == "application/problem+json" else answers).append(row)
    if refusals:
        statuses = ", ".join(status for status, _, _ in sorted(refusals))
        answers.append((statuses, _type({"$ref": REFERENCE + "Problem"}), "what is wrong, in words"))
    tables = [
        _table("Parameters", ("name", "type", "meaning"), parameters),
        _table("Body", ("content type", "shape", ""), body),
        _table("Answers", ("status", "shape", "meaning"), answers),
    ]
    head = f'<section id="{_anchor(method, path)}"><h3>{_code(f"{method} {path}")}</h3>'
    summary = f"<p><strong>{_inline(operation.get('summary', ''))}</strong></p>"
    return "".join([head, summary, _text(operation.get("description", "")), *tables, "</section>"])


def _meaning(parameter: dict[str, Any]) -> str:
    return parameter.get("description") or parameter["schema"].get("description") or ""


def _shape(name: str, shape: dict[str, Any]) -> str:
    required = shape.get("required", [])
    rows = []
    for field, about in shape.get("properties", {}).items():
        default = ", required" if field in required else ""
        if about.get("default") is not None:
            default = f", default {_code(json.dumps(about['default']))}"
        rows.append((_code(field), _type(about) + default, _inline(about.get("description", ""))))
    examples = [f"<pre>{html.escape(json.dumps(one, ensure_ascii=False))}</pre>" for one in shape.get("examples", [])]
    head = f'<section id="{html.escape(name)}"><h3>{html.escape(name)}</h3>{_text(shape.get("description", ""))}'
    return "".join([head, _table("Fields", ("name", "type", "meaning"), rows), *examples, "</section>"])


def _table(caption: str, head: tuple[str, ...], rows: Iterable[Row]) -> str:
    body = "".join(f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in rows)
    titles = "".join(f'<th scope="col">{name}</th>' for name in head)
    table = f"<table><caption>{caption}</caption><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{table}</div>' if body else ""


def _type(schema: dict[str, Any]) -> str:
    """A schema in a few words, as HTML."""
    if "$ref" in schema:
        name = html.escape(schema["$ref"].removeprefix(REFERENCE))
        return f'<a href="#{name}">{name}</a>'
    for many in ("anyOf", "oneOf"):
        if many in schema:
            return " or ".join(_type(one) for one in schema[many])
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " or ".join(_code(json.dumps(value)) for value in values)
    kind = schema.get("type", "anything")
    if isinstance(kind, list):
        return " or ".join(_type({**schema, "type": one}) for one in kind)
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}{_bounds(schema, kind)}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    if kind == "object" and schema.get("properties"):
        return "; ".join(f"{_code(name)}: {_type(one)}" for name, one in schema["properties"].items())
    return html.escape(kind) + _bounds(schema, kind)


def _bounds(schema: dict[str, Any], kind: str) -> str:
    """ " (1 to 10)", " (up to 64 of them)" or nothing."""
    if kind not in _BOUNDS:
        return ""
    least, most, unit = _BOUNDS[kind]
    low, high = schema.get(least), schema.get(most)
    if high is None:
        return f" ({low} or more{unit})" if low else ""
    return f" ({f'{low} to' if low is not None else 'up to'} {high:,}{unit})"


def _text(text: str) -> str:
    return "".join(f"<p>{_inline(' '.join(part.split()))}</p>" for part in text.split("\n\n") if part.strip())


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _code(text: str) -> str:
    return f"<code>{html.escape(text)}</code>"


def _anchor(method: str, path: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", f"{method}{path}".lower()).strip("-")
