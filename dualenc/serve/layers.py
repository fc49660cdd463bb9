"""The order of the middlewares, whatever the order in which they are installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi import FastAPI

# Outermost first: what refuses comes after what counts and dresses the refusal, and before what reads the body
ORDER = ("observe", "headers", "cors", "guard", "body", "errors")


def add(app: FastAPI, middleware: Any, layer: str, **options: Any) -> None:
    """Put a middleware in its place. Others (`app.add_middleware`) stay inside of these."""
    app.add_middleware(middleware, **options)
    added = app.user_middleware[0]
    places: dict[int, int] = getattr(app.state, "layers", {})
    places[id(added)] = ORDER.index(layer)
    app.state.layers = places
    app.user_middleware.sort(key=lambda one: places.get(id(one), len(ORDER)))
