"""The shapes of replies: what the API's documentation says of them. They are written as they are, not checked again."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Reply(BaseModel):
    """No other fields than these."""

    model_config = ConfigDict(extra="forbid")


class Took(Reply):
    """Milliseconds in the server."""

    total: float
    embed: Annotated[float, Field(description="decoding and embedding the query, waiting included")]
    search: Annotated[float, Field(description="searching the index, waiting included")]


class Hit(Reply):
    """A row that was found."""

    id: Annotated[int, Field(description="stable for as long as the row is in the index", examples=[17])]
    score: Annotated[float, Field(description="cosine with the query", examples=[0.312])]
    image: Annotated[
        str | None, Field(description="where a thumbnail is; null: no image", examples=["/items/17/image?index=photos"])
    ]
    metadata: Annotated[
        dict[str, Any],
        Field(description="the row's columns, less where the server's files are", examples=[{"key": "17"}]),
    ]
    label: Annotated[str, Field(description="only if `labels` were given", examples=["dog"])] = ""
    probability: Annotated[float, Field(description="of `label` among all labels", examples=[0.93])] = 0.0
    vector: Annotated[list[float], Field(description="the row, of length 1; only if `vectors` is true")] = []


class SearchReply(Reply):
    """Hits, best first."""

    index: Annotated[str, Field(examples=["photos"])]
    generation: Annotated[int, Field(description="goes up with every change of the index", examples=[1])]
    rows: Annotated[int, Field(description="of the index", examples=[6000])]
    recall: Annotated[float | None, Field(description="ANN recall that was measured for this index", examples=[0.97])]
    exact: Annotated[bool, Field(description="whether every row was compared")]
    took_ms: Took
    hits: list[Hit]
    next_offset: Annotated[
        int | None, Field(description="`offset` of the next page, which may be empty; null: there is none")
    ]


class Column(Reply):
    """A column of the metadata."""

    name: Annotated[str, Field(examples=["split"])]
    type: Literal["text", "number", "boolean", "time", "other"]
    values: Annotated[
        list[tuple[Any, int]] | None,
        Field(description="each value with its number of rows, most frequent first; null: more than 50"),
    ]
    min: Annotated[Any, Field(description="of numbers and times, else null")]
    max: Annotated[Any, Field(description="of numbers and times, else null")]


class IndexInfo(Reply):
    """An index of this server."""

    name: Annotated[str, Field(examples=["photos"])]
    rows: Annotated[int, Field(examples=[6000])]
    dim: Annotated[int, Field(description="D, numbers in an embedding", examples=[256])]
    kind: Annotated[str, Field(description="how it is searched", examples=["flat"])]
    recall: Annotated[float | None, Field(description="measured ANN recall", examples=[0.97])]
    recall_at: Annotated[int | None, Field(description="of how many hits", examples=[10])]
    exact: Annotated[bool, Field(description="whether every row is compared")]
    bytes: Annotated[int, Field(description="of codes, ids and rows on disk", examples=[6192090])]
    generation: Annotated[int, Field(description="goes up with every change", examples=[1])]
    fingerprint: Annotated[str | None, Field(description="of the encoder whose embeddings these are")]
    encoder: Annotated[
        Literal["ready", "loading", "none", "failed"],
        Field(description="whether texts and pictures can be searched by"),
    ]
    images: Annotated[bool, Field(description="whether hits have thumbnails")]
    labels: Annotated[bool, Field(description="whether hits can be given zero-shot labels")]
    columns: list[Column]


class Item(Reply):
    """A row of the index."""

    id: int
    image: str | None
    metadata: dict[str, Any]


class ClassReply(Reply):
    """A class and how well it fits."""

    name: str
    score: Annotated[float, Field(description="cosine")]
    probability: Annotated[float, Field(description="among all classes given")]


class ClassifyReply(Reply):
    """Classes, best first."""

    classes: list[ClassReply]


class EmbedReply(Reply):
    """Rows of length 1, in the order given."""

    fingerprint: Annotated[str | None, Field(description="of the encoder, as the index names it; null: it does not")]
    dim: int
    texts: list[list[float]]
    images: list[list[float]]


class Health(Reply):
    """The process answers."""

    status: Literal["ok"]


class Readiness(Reply):
    """Of one index."""

    rows: int
    generation: int
    encoder: Annotated[str, Field(description="ready, loading, none, or failed")]
