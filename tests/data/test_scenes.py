"""The built-in scenes: captions true of their pictures, swapped ones false, and nothing of the held-out sets in training.

Captions are read here by a parser of their own, and judged against the places in the metadata; pixels are compared too.
"""

from __future__ import annotations

import io
import itertools
import json
import re
from random import Random

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dualenc.data import scenes as module
from dualenc.data.scene_pictures import GAP, LIGHT, RGB, SHADE, lay_out, picture_bytes
from dualenc.data.scene_words import COLOURS, OPPOSITE, SHAPES, SIZES, Scene, draw_scene, templates, true_of
from dualenc.data.scenes import describe, draw_splits, write_scenes
from dualenc.data.shards import open_source
from dualenc.data.tar import members

HELD_OUT = ("val", "test", "colour", "shape")
SIZES_OF_SETS = {"train": 60, "val": 12, "test": 20, "colour": 16, "shape": 16}
NOUN = r"a (small|large) (\w+) (\w+)"
CAPTION = re.compile(rf"{NOUN} (left of|right of|above|below) {NOUN}(?:, both (left of|right of|above|below) {NOUN})?")
seeds = st.integers(0, 10**6)


def parse(caption: str) -> tuple[list[tuple[str, ...]], list[tuple[int, str, int]]]:
    """Things in the order in which they are named, and claims (which, relation, which)."""
    match = CAPTION.fullmatch(caption)
    assert match, caption
    parts = match.groups()
    things, claims = [parts[:3], parts[4:7]], [(0, parts[3], 1)]
    if parts[7]:
        things.append(parts[8:11])
        claims += [(0, parts[7], 2), (1, parts[7], 2)]
    return things, claims


def shown(fields: dict) -> list[dict]:
    """What the metadata says is in the picture."""
    names = ("size", "colour", "shape", "x", "y", "radius")
    return [{name: fields[f"{name}_{i}"] for name in names} for i in range(1, fields["objects"] + 1)]


def offset(relation: str, first: dict, second: dict) -> float:
    """How far `first` lies where the relation says, seen from `second`; negative on the other side."""
    axis, sign = {"left of": ("x", -1), "right of": ("x", 1), "above": ("y", -1), "below": ("y", 1)}[relation]
    return sign * (first[axis] - second[axis])


def holds(caption: str, fields: dict, clearly: bool) -> bool:
    """Whether a caption is true of a picture in some reading. clearly: by more than the two radii, and more along the
    relation's axis than across it; otherwise by any hair."""
    named, claims = parse(caption)
    things = shown(fields)
    if len(named) != len(things):
        return False
    for order in itertools.permutations(things):
        if any((t["size"], t["colour"], t["shape"]) != name for t, name in zip(order, named, strict=True)):
            continue
        least = [(order[i]["radius"] + order[j]["radius"]) if clearly else 0 for i, _, j in claims]
        if all(offset(r, order[i], order[j]) > x for (i, r, j), x in zip(claims, least, strict=True)):
            i, relation, j = claims[0]
            across = "y" if relation in ("left of", "right of") else "x"
            return not clearly or abs(order[i][across] - order[j][across]) < offset(relation, order[i], order[j])
    return False


def drawn(seed: int, three: float = 0.3) -> dict[str, list]:
    return draw_splits(*(SIZES_OF_SETS[name] for name in ("train", "val", "test", "colour")), seed, three)


@settings(max_examples=15)
@given(seeds)
def test_captions_are_clearly_true_and_swapped_ones_false(seed):
    for split, some in drawn(seed).items():
        for sample in some:
            places = lay_out(sample.scene, Random(sample.key))
            fields = describe(sample.scene, places, split in ("val", "test"))
            assert holds(sample.scene.caption, fields, clearly=True)
            assert holds(sample.scene.otherwise.caption, fields, clearly=True)
            if split in ("val", "test"):
                for swap in ("swap_attribute", "swap_relation"):
                    assert not holds(fields[swap], fields, clearly=False), (sample.scene.caption, fields[swap])
            else:
                assert "swap_relation" not in fields


@settings(max_examples=15)
@given(seeds)
def test_swaps_change_one_kind_of_thing_alone(seed):
    for sample in drawn(seed)["test"]:
        words = sample.scene.caption.split()
        attribute, relation = sample.scene.swapped_attribute.caption, sample.scene.swapped_relation.caption
        changed = [(a, b) for a, b in zip(words, attribute.split(), strict=True) if a != b]
        assert len(changed) == 2 and changed[0] == changed[1][::-1] and set(changed[0]) <= set(COLOURS)
        changed = [(a, b) for a, b in zip(words, relation.split(), strict=True) if a != b]
        assert changed in ([("left", "right")], [("right", "left")], [("above", "below")], [("below", "above")])


@settings(max_examples=15)
@given(seeds, st.sampled_from([0.0, 0.3, 1.0]))
def test_no_held_out_meaning_is_in_training_and_no_caption_occurs_twice(seed, three):
    splits = drawn(seed, three)
    assert {name: len(some) for name, some in splits.items()} == SIZES_OF_SETS
    meanings = {}
    for name, some in splits.items():
        claims = [parse(sample.scene.caption) for sample in some]
        # a set of statements "who stands how to whom", said one way: equal for both ways to say a scene
        meanings[name] = [
            frozenset(
                (things[i], r, things[j]) if r in ("left of", "above") else (things[j], OPPOSITE[r], things[i])
                for i, r, j in said
            )
            for things, said in claims
        ]
    held_out = [meaning for name in HELD_OUT for meaning in meanings[name]]
    assert len(set(held_out)) == len(held_out)
    assert not set(held_out) & set(meanings["train"])
    assert len({sample.key for some in splits.values() for sample in some}) == sum(map(len, splits.values()))


def test_training_avoids_held_out_meanings_told_either_way_even_where_they_are_many():
    splits = draw_splits(8000, 2000, 2000, 400, 0, 0.0)  # a quarter of all meanings of two things is held out
    held_out = {sample.scene.caption for name in HELD_OUT for sample in splits[name]}
    training = {scene.caption for sample in splits["train"] for scene in (sample.scene, sample.scene.otherwise)}
    assert len(held_out) == 4800 and not held_out & training


def test_held_out_sets_do_not_depend_on_the_size_of_the_training_set():
    few, many = draw_splits(10, 5, 20, 16, 3, 0.3), draw_splits(500, 5, 20, 16, 3, 0.3)
    assert all(few[name] == many[name] for name in HELD_OUT)
    assert few["train"] == many["train"][:10]
    assert draw_splits(10, 5, 20, 16, 4, 0.3)["test"] != few["test"]


def test_training_shows_all_there_is_and_both_ways_to_say_it():
    some = [sample.scene for sample in draw_splits(3000, 5, 5, 8, 0, 0.3)["train"]]
    assert {scene.relation for scene in some} == set(OPPOSITE)
    assert {scene.both for scene in some} == {None, *OPPOSITE}
    things = {thing for scene in some for thing in scene.things}
    assert len(things) == len(SIZES) * len(COLOURS) * len(SHAPES)
    leading = np.mean([scene.relation in ("left of", "above") for scene in some])
    assert leading == pytest.approx(module.LEADING_SHARE, abs=0.03)
    assert np.mean([len(scene.things) == 3 for scene in some]) == pytest.approx(0.3, abs=0.03)
    # what teaches relations and attributes: pairs that come back in another arrangement, or with their colours exchanged
    pairs = [frozenset(scene.things[:2]) for scene in some]
    assert len(set(pairs)) < len(pairs) / 2
    exchanged = [frozenset(scene.swapped_attribute.things[:2]) in set(pairs) for scene in some[:300]]
    assert np.mean(exchanged) > 0.5


@settings(max_examples=40)
@given(seeds, st.booleans())
def test_things_lie_apart_and_inside_the_picture(seed, both):
    scene = draw_scene(Random(seed), float(both))
    places = lay_out(scene, Random(seed + 1))
    for place in places:
        assert min(place.x, place.y) - place.radius >= 0 and max(place.x, place.y) + place.radius <= 1
    for a, b in itertools.combinations(places, 2):
        assert max(abs(a.x - b.x), abs(a.y - b.y)) >= a.radius + b.radius + GAP - 1e-9
    small = [p.radius for p, t in zip(places, scene.things, strict=True) if t.size == "small"]
    large = [p.radius for p, t in zip(places, scene.things, strict=True) if t.size == "large"]
    assert not small or not large or max(small) * 1.3 < min(large)


@settings(max_examples=40)
@given(seeds)
def test_the_picture_shows_what_the_metadata_says(seed):
    scene = draw_scene(Random(seed), 0.5)
    data, places = picture_bytes(scene, 128, str(seed))
    pixels = np.asarray(Image.open(io.BytesIO(data))).astype(float)
    assert pixels.shape == (128, 128, 3)
    for thing, place in zip(scene.things, places, strict=True):
        ring = thing.shape == "ring"
        at = (place.x + 0.78 * place.radius * ring, place.y)  # a ring's middle is empty
        column, row = (int(v * 128) for v in at)
        unlit = pixels[row, column] - LIGHT * np.array([at[0] - 0.5, 0, at[1] - 0.5])
        distance = {name: np.abs(np.array(rgb) - unlit).max() for name, rgb in RGB.items()}
        assert distance[thing.colour] <= SHADE + LIGHT / 2 and min(distance, key=distance.get) == thing.colour
        beside = pixels[row, int((place.x - place.radius) * 128) - 2]
        assert np.abs(beside - pixels[row, column]).max() > 40  # the thing ends where its radius says
        middle = pixels[int(place.y * 128), int(place.x * 128)]
        assert (np.abs(middle - pixels[row, column]).max() > 40) == ring


def test_pictures_depend_on_scene_and_seed_alone():
    scene = draw_scene(Random(0), 1.0)
    assert picture_bytes(scene, 64, "a") == picture_bytes(scene, 64, "a")
    assert picture_bytes(scene, 64, "a")[0] != picture_bytes(scene, 64, "b")[0]


@given(seeds)
def test_a_caption_is_true_of_its_own_scene_in_both_tellings_and_of_no_mirrored_one(seed):
    scene = draw_scene(Random(seed), 0.5)
    centres = [(p.x, p.y) for p in lay_out(scene, Random(seed))]
    assert true_of(scene, scene.things, centres) and true_of(scene.otherwise, scene.things, centres)
    assert scene.otherwise.otherwise == scene and scene.otherwise.meaning == scene.meaning
    turned = [(1 - x, 1 - y) for x, y in centres]
    assert not true_of(scene, scene.things, turned)


def test_equal_colours_or_shapes_cannot_be_swapped_for_something_false():
    a, b = module.draw_scene(Random(1), 0.0).things
    for first, second in [(a, b._replace(colour=a.colour)), (a, b._replace(shape=a.shape))]:
        assert not Scene((first, second), "left of").swappable


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("scenes") / "out"
    counts = write_scenes(out, train=60, val=12, test=20, zeroshot=16, shard_size=25, seed=5, progress=False)
    assert counts == SIZES_OF_SETS
    return out


def test_the_folder_holds_what_webdataset_reads(written):
    assert sorted(path.name for path in written.iterdir()) == sorted(SIZES_OF_SETS)
    assert sorted(path.name for path in (written / "train").iterdir()) == ["000000.tar", "000001.tar", "000002.tar"]
    for split, count in SIZES_OF_SETS.items():
        paths = sorted(str(path) for path in (written / split).glob("*.tar"))
        some = list(webdataset.WebDataset(paths, shardshuffle=False))
        source = open_source(written / split)
        assert len(some) == len(source) == count
        for i, sample in enumerate(some):
            assert (sample["__key__"], sample["png"]) == (source.keys[i], source.read(i))
            assert [sample["txt"].decode()] == source.sample(i).captions()
            fields = json.loads(sample["json"])
            assert fields == source.sample(i).metadata()  # plain values all: fit for filters
            assert holds(sample["txt"].decode(), fields, clearly=True)
            assert ("swap_relation" in fields) == ("swap_attribute" in fields) == (split in ("val", "test"))
        assert all(member.size < 20_000 for path in paths for member in members(path)[0])


@pytest.mark.parametrize(("noun", "names"), [("colour", COLOURS), ("shape", SHAPES)])
def test_zero_shot_sets_share_their_class_and_show_every_class(written, noun, names):
    assert (written / noun / "classnames.txt").read_text().split() == list(names)
    source = open_source(written / noun)
    labels = [source.sample(i).label() for i in range(len(source))]
    for i, label in enumerate(labels):
        fields = source.sample(i).metadata()
        assert {thing[noun] for thing in shown(fields)} == {names[label]}
    counts = np.bincount(labels, minlength=len(names))
    assert counts.sum() == 16 and counts.max() - counts.min() <= 1
    lines = (written / noun / "zeroshot_classification_templates.txt").read_text().splitlines()
    assert len(set(lines)) == len(lines) == 32 and lines == templates(noun)
    for line in lines:
        assert line.count("{c}") == 2
        named, _ = parse(line.replace("{c}", names[0]))
        assert {thing[1 if noun == "colour" else 2] for thing in named} == {names[0]}


def test_the_same_seed_writes_the_same_bytes(written, tmp_path):
    write_scenes(tmp_path / "again", train=60, val=12, test=20, zeroshot=16, shard_size=25, seed=5, progress=False)
    for path in written.rglob("[!.]*.*"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(written)).read_bytes()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train": 0}, "train is 0"),
        ({"val": -1}, "val is -1"),
        ({"zeroshot": 7}, "zeroshot is 7.*8 or more"),
        ({"size": 8}, "size is 8"),
        ({"three": 1.5}, "three is 1.5"),
        ({"test": 100_000}, r"val \+ test is 100500.*or fewer"),
        ({"zeroshot": 100_000}, "zeroshot is 100000.*or fewer"),
        ({"shard_size": 0}, "hold nothing"),
    ],
)
def test_sizes_that_cannot_be_are_refused_and_leave_nothing(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        write_scenes(tmp_path / "out", progress=False, **wrong)
    assert list(tmp_path.iterdir()) == []


def test_the_most_that_is_offered_can_be_had():
    with pytest.raises(ValueError, match=r"give .* or fewer") as caught:
        write_scenes("unused", test=100_000, progress=False)
    most = int(re.search(r"give (\d+) or fewer", str(caught.value))[1])
    with pytest.raises(ValueError, match="or fewer"):
        write_scenes("unused", val=1, test=most, progress=False)
    splits = draw_splits(1000, most - 100, 100, 500, 0, module.THREE)
    assert len(splits["val"]) == most - 100 and len(splits["train"]) == 1000


def test_a_folder_in_the_way_and_an_interrupt(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    with pytest.raises(FileExistsError):
        write_scenes(tmp_path / "out", train=5, val=1, test=1, zeroshot=8, progress=False)
    calls = itertools.count()
    render = module._render

    def interrupted(*arguments):
        if next(calls) == 7:
            raise KeyboardInterrupt
        return render(*arguments)

    monkeypatch.setattr(module, "_render", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "new", train=5, val=1, test=1, zeroshot=8, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
