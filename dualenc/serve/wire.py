"""What goes between a client and a server: hits as they come, images and terms as they are sent."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

    Picture = str | os.PathLike[str] | bytes | Image  # a file's path, an encoded image, or a decoded one


@dataclass(frozen=True)
class Hit:
    """A row that was found. image: the path of its picture at the server, None where that has none."""

    id: int
    score: float
    metadata: dict[str, Any]
    image: str | None = None
    label: str | None = None
    probability: float | None = None
    vector: list[float] | None = field(default=None, repr=False)

    @property
    def caption(self) -> str | None:
        """Its caption, where the index keeps captions."""
        return self.metadata.get("caption")


@dataclass(frozen=True)
class Hits:
    """What a search found, best first: iterate it, take its length, ask for one by number.

    index, generation, rows: what was searched. recall: its measured ANN recall, None where nobody measured; exact:
    whether every row was compared. took_ms: milliseconds in the server, total and by stage. next_offset: where the next
    page begins, None after the last.
    """

    hits: tuple[Hit, ...]
    index: str
    generation: int
    rows: int
    recall: float | None
    exact: bool
    took_ms: dict[str, float]
    next_offset: int | None

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, place: int) -> Hit:
        return self.hits[place]

    @property
    def ids(self) -> list[int]:
        """The ids, best first."""
        return [hit.id for hit in self.hits]


def read_hits(reply: dict[str, Any]) -> Hits:
    """A server's answer to a search. Fields that this version does not know are left out.

    KeyError, TypeError: it is none.
    """
    names = [known.name for known in fields(Hit)]
    hits = tuple(Hit(**{name: hit[name] for name in names if name in hit}) for hit in reply["hits"])
    for hit in hits:
        if not (isinstance(hit.id, int) and isinstance(hit.score, int | float) and isinstance(hit.metadata, dict)):
            raise TypeError(f"{hit} is no hit")
    return Hits(hits, **{known.name: reply[known.name] for known in fields(Hits) if known.name != "hits"})


def encoded(image: Picture) -> bytes:
    """An image as a server takes it: a file's bytes, bytes as they are, a PIL image as PNG, which loses nothing.

    OSError: no such file. ValueError: another type.
    """
    if isinstance(image, bytes | bytearray):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    if not hasattr(image, "save"):
        raise ValueError(f"an image is {type(image).__name__}; give a path, encoded bytes, or a PIL image")
    data = io.BytesIO()
    image.save(data, "PNG", compress_level=1)
    return data.getvalue()


def as_term(term: Any) -> dict[str, Any]:
    """{"weight", kind: value} of a mapping, or of (weight, kind, value)."""
    if isinstance(term, tuple):
        weight, kind, value = term
        return {"weight": weight, kind: value}
    return dict(term)


def sent(part: dict[str, Any], uploads: list[bytes]) -> dict[str, Any]:
    """A term (changed in place) as it is sent: images go beside it as uploads, arrays as lists."""
    if part.get("image") is not None:
        part["upload"] = len(uploads)
        uploads.append(encoded(part.pop("image")))
    for kind in part.keys() & {"embedding", "id", "weight"}:
        part[kind] = getattr(part[kind], "tolist", lambda value=part[kind]: value)()  # numpy's
    return part
