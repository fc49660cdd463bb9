"""The shapes of requests, which pydantic checks once."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

MOST_HITS = 1000
MOST_OFFSET = 100_000
MOST_TERMS = 32
MOST_LABELS = 200
MOST_TEMPLATES = 100
MOST_PROMPTS = 4000  # labels x templates: each is a text to embed
MOST_TEXTS, MOST_IMAGES = 256, 64  # of one request to /embed
LONGEST_TEXT, LONGEST_NAME, LONGEST_WHERE = 10_000, 500, 200_000  # characters
LONGEST_WHERE_IN_URL = 5000  # each may take 12 letters there, and the server reads 64 KiB
LARGEST_ID = 2**63 - 1
_DIGITS = re.compile("[0-9]{1,19}")
KINDS = ("text", "image", "image_url", "embedding", "id", "upload")


def _wordy(text: str) -> str:
    if not text.strip():
        raise ValueError("it is empty; write something, or leave it out")
    return text


def _with_place(template: str) -> str:
    if "{}" not in template and "{c}" not in template:
        raise ValueError("it has no place for the label, so all would get the same prompt; put {} into it")
    return template


def _distinct(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("one of them is there twice, and their scores would always tie; leave one out")
    return names


def _of_digits(value: Any) -> Any:
    return int(value) if isinstance(value, str) and _DIGITS.fullmatch(value) else value


Text = Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT), AfterValidator(_wordy)]
Name = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME), AfterValidator(_wordy)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Embedding = Annotated[list[Finite], Field(min_length=1, max_length=65_536)]
Labels = Annotated[list[Name], Field(min_length=2, max_length=MOST_LABELS), AfterValidator(_distinct)]
Template = Annotated[Name, AfterValidator(_with_place)]
Templates = Annotated[list[Template], Field(min_length=1, max_length=MOST_TEMPLATES)]
# a text of digits, too: JavaScript's numbers are exact up to 2**53 only
_Digits = Annotated[str, Field(pattern="^[0-9]{1,19}$")]
_Number = Annotated[int, Field(ge=0, le=LARGEST_ID)]
Id = Annotated[_Number, BeforeValidator(_of_digits, json_schema_input_type=_Number | _Digits)]
Count = Annotated[int, Field(ge=1, le=MOST_HITS, description="how many hits")]
Offset = Annotated[int, Field(ge=0, le=MOST_OFFSET, description="how many of the best to leave out: the next page")]
Condition = Annotated[
    str | None,
    Field(max_length=LONGEST_WHERE, description="an SQL condition on the metadata, such as `objects = 2`"),
]
Threshold = Annotated[Finite | None, Field(description="only hits with at least this cosine")]
Group = Annotated[
    str | None, Field(max_length=LONGEST_NAME, description="a metadata column: of each of its values only the best hit")
]
IndexName = Annotated[str | None, Field(description="an index by name; left out: the server's first")]
Picture = Annotated[str | None, Field(description="an encoded picture (JPEG, PNG, WebP, …) in base64")]
Address = Annotated[str | None, Field(max_length=8192, description="where a picture is; if the server may fetch")]
Row = Annotated[Embedding | None, Field(description="D numbers of length 1, made by the index's own encoder")]


class Body(BaseModel):
    """A JSON object of a request: no other fields, no conversions ("10" is no number)."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Term(Body):
    """One part of a query. Exactly one of text, image, image_url, embedding, id, upload."""

    weight: Annotated[Finite, Field(description="how much it counts; negative: less like this")] = 1.0
    text: Annotated[Text | None, Field(description="words to look for")] = None
    image: Picture = None
    image_url: Address = None
    embedding: Row = None
    id: Annotated[Id | None, Field(description="a row of the index")] = None
    upload: Annotated[int | None, Field(ge=0, description="the number, from 0, of an uploaded `image` part")] = None

    @model_validator(mode="after")
    def _one(self) -> Term:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"it has {' and '.join(given) or 'nothing'}; give exactly one of {', '.join(KINDS)}")
        return self

    @property
    def kind(self) -> str:
        """Which of KINDS it is."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)


class Labelled(Body):
    """What `labels` and `templates` have in common."""

    @model_validator(mode="after")
    def _few(self) -> Labelled:
        labels: Any = getattr(self, "labels", None) or getattr(self, "classes", None) or []
        prompts = len(labels) * len(getattr(self, "templates", None) or [""])
        if prompts > MOST_PROMPTS:
            raise ValueError(f"labels times templates are {prompts:,} prompts; use up to {MOST_PROMPTS:,}")
        return self


class SearchRequest(Labelled):
    """What to look for, and which hits to answer.

    The short forms text, image, image_url, embedding and id are terms of weight 1; at least one term must be there.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"text": "a dog in the snow", "k": 5},
                {"terms": [{"id": 17}, {"text": "night", "weight": -0.5}], "labels": ["dog", "cat"], "k": 5},
            ]
        }
    )
    index: IndexName = None
    text: Annotated[Text | None, Field(description="words to look for")] = None
    image: Picture = None
    image_url: Address = None
    embedding: Row = None
    id: Annotated[Id | None, Field(description="a row of the index")] = None
    expression: Annotated[
        Text | None, Field(description='several texts and rows in one line: `2*"red car" - "night" + 0.5*#17`')
    ] = None
    terms: Annotated[list[Term], Field(max_length=MOST_TERMS, description="parts of the query with weights")] = []
    where: Condition = None
    k: Count = 10
    offset: Offset = 0
    threshold: Threshold = None
    group_by: Group = None
    labels: Annotated[
        Labels | None, Field(description="zero-shot labels: each hit is given the one that fits it best")
    ] = None
    templates: Annotated[
        Templates | None, Field(description="prompts for the labels, such as `a photo of a {}`; left out: `{}`")
    ] = None
    vectors: Annotated[bool, Field(description="whether to send the hits' own rows")] = False


class ClassifyRequest(Labelled):
    """A picture (`image`, `image_url`, or an uploaded `image` part) and the classes to choose from."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"image": "iVBORw0KGgo…", "classes": ["dog", "cat", "horse"], "k": 2}]}
    )
    index: IndexName = None
    image: Picture = None
    image_url: Address = None
    classes: Annotated[Labels, Field(description="names of the classes")]
    templates: Annotated[
        Templates | None, Field(description="prompts for the classes, such as `a photo of a {}`; left out: `{}`")
    ] = None
    k: Annotated[int, Field(ge=1, le=MOST_LABELS, description="how many classes to answer, best first")] = 5


class EmbedRequest(Body):
    """Texts, pictures (base64 here, or uploaded `image` parts), or both."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"texts": ["a red circle", "a dog"]}]})
    index: IndexName = None
    texts: Annotated[list[Text] | None, Field(max_length=MOST_TEXTS)] = None
    images: Annotated[list[str] | None, Field(max_length=MOST_IMAGES, description="pictures in base64")] = None


class ItemQuery(BaseModel):
    """Of GET /items/{id}."""

    model_config = ConfigDict(extra="forbid")
    index: IndexName = None


class SimilarQuery(ItemQuery):
    """Of GET /items/{id}/similar."""

    k: Count = 10
    offset: Offset = 0
    where: Annotated[str | None, Field(max_length=LONGEST_WHERE_IN_URL, description="an SQL condition")] = None
    threshold: Threshold = None
    group_by: Group = None
