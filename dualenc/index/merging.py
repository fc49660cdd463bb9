"""Two indexes as one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from dualenc.files import refuse_existing
from dualenc.index.change import LAST_ID
from dualenc.index.generation import Generation, commit, open_generation
from dualenc.index.lock import making
from dualenc.index.segments import Draft, draft_of, joined
from dualenc.index.vectors import unit_rows
from dualenc.index.whose import refuse_foreign


def merge(first: str | Path, second: str | Path, out: str | Path, renumber: bool = False) -> None:
    """Write an index of the rows of two, `first`'s before `second`'s, in a new folder; both stay as they are.

    Inverted lists are joined where recipe, mean and centroids are equal. Otherwise the second's original rows are added
    to the first's kind of index, with its centroids and mean. renumber: the second's ids are raised by the first's next
    id; without it, an id that both have is refused.
    ValueError: other encoders, D or sides; a common id; codes whose original rows nobody has. FileExistsError: `out`.
    """
    refuse_existing(Path(out))
    one, two = open_generation(Path(first)), open_generation(Path(second))
    _refuse_unlike(Path(first), one, Path(second), two)
    offset = one.manifest["next_id"] if renumber else 0
    _check_ids(one, two, offset)
    drafts = [draft_of(Path(first), one, place) for place in range(len(one.segments))]
    joins = one.segments[0].kind.joins and one.segments[0].kind.fits(two.segments[0].kind)
    for place in range(len(two.segments)):
        theirs = draft_of(Path(second), two, place)
        drafts.append(_raised(theirs if joins else _added(one, two, place, theirs), offset))
    if drafts[0].keeps and not all(draft.originals for draft in drafts):
        raise ValueError(
            f"{first} keeps original rows for re-ranking, {second} has only codes; build it again with its original rows"
        )
    draft = joined(drafts)
    head = {**one.head, "generation": 1, "next_segment": 2}
    head["next_id"] = max(one.manifest["next_id"], two.manifest["next_id"] + offset)
    with making(Path(out)) as (_, folder):
        commit(folder, head, [draft.write(folder, 1, one.setting)])


def _refuse_unlike(first: Path, one: Generation, second: Path, two: Generation) -> None:
    for name, cure in (("dim", "embed both with one encoder"), ("side", "build both for one side")):
        if one.manifest[name] != two.manifest[name]:
            raise ValueError(
                f"{first} has {name} {one.manifest[name]}, {second} has {two.manifest[name]}; {cure} before merging"
            )
    refuse_foreign(one.manifest["fingerprint"], two.manifest["fingerprint"], str(second))
    for folder, now in ((first, one), (second, two)):
        if now.segments[0].kind.name == "adopted":
            raise ValueError(
                f"{folder} was adopted as another program built it and cannot be merged; build one of our own"
            )


def _check_ids(one: Generation, two: Generation, offset: int) -> None:
    ids = two.catalog.ids
    if len(ids) and int(ids.max()) + offset > LAST_ID:
        raise ValueError(f"id {ids.max()} raised by {offset} does not fit in int64; build that index with smaller ids")
    both = ids[one.catalog.find(ids + offset) >= 0]
    if len(both):
        raise ValueError(f"both indexes have id {both[0]}; give one of them other ids, or merge with renumber")


def _added(one: Generation, two: Generation, place: int, theirs: Draft) -> Draft:
    """The second's rows in an index of the first's kind, centroids and mean."""
    if theirs.originals is None:
        raise ValueError(
            f"the second index holds {two.segments[place].kind.build['codes']} codes without their original rows, and its "
            "lists do not fit the first's; build it again with the first's recipe from the original rows"
        )
    kind = one.segments[0].kind.empty()
    if kind.joins:
        for ids, rows in theirs.originals():
            kind.add(unit_rows(rows, "the original rows"), ids)
    return replace(theirs, kind=kind, spread=None)


def _raised(draft: Draft, offset: int) -> Draft:
    """A draft with its ids raised by `offset`, in the FAISS index as well."""
    if not offset:
        return draft
    source = draft.originals

    def originals() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        assert source is not None
        for ids, rows in source():
            yield ids + offset, rows

    kind = draft.kind
    if kind.joins:
        kind = kind.empty()
        kind.absorb(draft.kind, offset)
    return replace(draft, kind=kind, ids=draft.ids + offset, originals=None if source is None else originals)
