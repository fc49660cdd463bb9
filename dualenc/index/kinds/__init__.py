"""The kinds of index: how each is made by FAISS, added to, removed from and searched."""

from __future__ import annotations

from dualenc.index.kinds.adopted import Adopted
from dualenc.index.kinds.base import Allowed, Kind
from dualenc.index.kinds.flat import Flat
from dualenc.index.kinds.graph import Graph
from dualenc.index.kinds.lists import Lists

KINDS: dict[str, type[Kind]] = {kind.name: kind for kind in (Flat, Graph, Lists, Adopted)}

__all__ = ["KINDS", "Allowed", "Kind"]
