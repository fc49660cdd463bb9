"""What an evaluation hands to the report page: plain records of numbers, tables and example queries with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dualenc.evaluate.intervals import Interval


class Embedded(Protocol):
    """Embedded samples, as `embed` makes them; a store read back has the same fields."""

    images: npt.NDArray[np.float32]  # (N, D) unit rows
    texts: npt.NDArray[np.float32]  # (T, D) unit rows
    image_row: npt.NDArray[np.int64]  # (T,) the row of text t's image
    metadata: pa.Table  # N rows: key, caption, captions, image_path, image_offset, image_size, label, …
    text_metadata: pa.Table  # T rows: key, caption, image_row


class TextEncoder(Protocol):
    """The part of a DualEncoder that evaluation uses."""

    @property
    def dim(self) -> int: ...

    def embed_texts(self, texts: list[str]) -> npt.NDArray[np.float32]: ...


class Picture(NamedTuple):
    """Where an image's bytes are: `size` bytes at `offset` of the file (or shard) `path`."""

    path: str
    offset: int
    size: int


class Share(NamedTuple):
    """A fraction 0..1, what chance would give where that is known, and the interval the value lies in."""

    value: float
    chance: float | None = None
    interval: Interval | None = None


class Headline(NamedTuple):
    """A number to print large: its name, the fraction 0..1, and one line that says what it means."""

    label: str
    share: Share
    meaning: str


class Table(NamedTuple):
    """Cells are text, or a Share, which prints in percent with a bar; below the table stands `note`. tick: what its shares
    call chance."""

    columns: list[str]
    rows: list[list[str | Share]]
    note: str = ""
    tick: str = "chance"


class Item(NamedTuple):
    """One thing that is shown: a picture, a text, or both. right: None where that is no question."""

    text: str
    picture: Picture | None = None
    has_picture: bool = False
    right: bool | None = None
    note: str = ""


class Example(NamedTuple):
    """A query and what the encoder ranked first, best first. found: whether the first one is right; None: no question."""

    query: Item
    items: list[Item]
    found: bool | None
    note: str = ""


class Panel(NamedTuple):
    """One drawn figure: its title, inline SVG, and what it says in words for those who cannot see it."""

    title: str
    svg: str
    words: str


class Examples(NamedTuple):
    title: str
    note: str
    rows: list[Example]


@dataclass(frozen=True)
class Section:
    """One evaluation on the page."""

    title: str
    about: str
    headlines: list[Headline] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    examples: list[Examples] = field(default_factory=list)
    figures: list[Panel] = field(default_factory=list)


def picture_item(embedded: Embedded, row: int, right: bool | None = None, note: str = "") -> Item:
    """The image of metadata row `row`, with its first caption; without its bytes where the metadata does not say."""
    table = embedded.metadata
    cell: dict[str, Any] = {name: table[name][row].as_py() for name in table.column_names if name in _PICTURE_COLUMNS}
    path, offset, size = (cell.get(name) for name in ("image_path", "image_offset", "image_size"))
    picture = None if path is None or offset is None or size is None else Picture(path, offset, size)
    return Item(cell.get("caption") or cell.get("key") or f"image {row}", picture, True, right, note)


def pick(found: npt.NDArray[np.bool_], count: int, seed: int = 0) -> list[int]:
    """Rows to show, drawn at random: `count` that were found, then `count` that were not (fewer where there are)."""
    order = np.random.default_rng(seed).permutation(len(found))
    return [int(row) for side in (found, ~found) for row in order[side[order]][:count]]


def check_dim(encoder: TextEncoder, embedded: Embedded) -> None:
    """ValueError unless `embedded` has the encoder's number of values per row."""
    if embedded.images.shape[1] != encoder.dim:
        raise ValueError(
            f"the data was embedded with {embedded.images.shape[1]} values a row, this encoder makes {encoder.dim}; "
            "give the encoder that embedded it, or embed again"
        )


def listed(names: Sequence[str], most: int = 5) -> str:
    """`a, b, c and 7 more`: a few of many names, for one line of text."""
    left = len(names) - most
    return ", ".join(names[:most]) + (f" and {left} more" if left > 0 else "")


_PICTURE_COLUMNS = ("key", "caption", "image_path", "image_offset", "image_size")
