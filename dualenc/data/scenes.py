"""The built-in data set: rendered scenes with captions, offline, the same for the same seed.

No held-out scene's meaning (whichever way it is said) is in the training set, and every held-out caption occurs once.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from tqdm import tqdm

from dualenc.data.scene_pictures import Place, picture_bytes
from dualenc.data.scene_words import (
    COLOURS,
    SHAPES,
    SIZES,
    Scene,
    draw_families,
    draw_of_family,
    draw_scene,
    templates,
    true_of,
)
from dualenc.data.write import SHARD_SAMPLES, encode_sample, shards
from dualenc.files import whole_folder

TRAIN, VAL, TEST, ZEROSHOT = 12_000, 500, 1_000, 500
THREE = 0.2  # share of scenes with three things
# What lets a small encoder learn in minutes who stands where: every training batch has scenes that differ in nothing
# else, and captions that mostly begin with the left or the upper thing (if both ways were as frequent, word order and
# relation would each tell nothing alone, and gradient descent would have nothing to start from).
FAMILIES, FAMILY_SHARE, LEADING_SHARE = 100, 0.8, 0.8
CLASSES = {"colour": tuple(COLOURS), "shape": tuple(SHAPES)}
OBJECTS = len(SIZES) * len(COLOURS) * len(SHAPES)
PAIRS = 2 * OBJECTS * (OBJECTS - 1)  # meanings of two things


class Drawn(NamedTuple):
    """A scene to render. `label` is its class in a zero-shot set."""

    key: str
    scene: Scene
    held_out: bool
    label: int | None = None


def write_scenes(
    out: str | Path,
    *,
    train: int = TRAIN,
    val: int = VAL,
    test: int = TEST,
    zeroshot: int = ZEROSHOT,
    size: int = 64,
    seed: int = 0,
    three: float = THREE,
    shard_size: int = SHARD_SAMPLES,
    progress: bool = True,
) -> dict[str, int]:
    """Render scenes and write `out/{train,val,test,colour,shape}/*.tar`; return how many each holds.

    size: pixels, square. three: share of scenes with three things. zeroshot: scenes in each of the sets `colour` and
    `shape`, whose things share a colour or a shape: the class.
    Held-out samples carry `swap_attribute` and `swap_relation` in their metadata: captions that are false of the image.
    Raises ValueError for sizes that cannot be, FileExistsError where `out` holds something.
    """
    _refuse(train, val, test, zeroshot, size, three)
    drawn = draw_splits(train, val, test, zeroshot, seed, three)
    bar = tqdm(total=sum(map(len, drawn.values())), desc="scenes", unit="scene", disable=None if progress else True)
    with whole_folder(out) as folder, bar:
        for split, scenes in drawn.items():
            with shards(folder / split, shard_size) as writer:
                for sample in scenes:
                    writer.write(_render(sample, size, seed))
                    bar.update()
        for noun, names in CLASSES.items():
            (folder / noun / "classnames.txt").write_text("\n".join(names) + "\n")
            (folder / noun / "zeroshot_classification_templates.txt").write_text("\n".join(templates(noun)) + "\n")
    return {split: len(scenes) for split, scenes in drawn.items()}


def draw_splits(train: int, val: int, test: int, zeroshot: int, seed: int, three: float) -> dict[str, list[Drawn]]:
    """What each split shows. Held-out splits come first, so that they do not depend on the size of the training set."""
    taken: set[Scene] = set()  # meanings
    rng = Random(f"held-out scenes of {seed}")
    splits = {}
    for split, count in (("test", test), ("val", val)):
        scenes = (draw_scene(rng, three) for _ in iter(int, 1))  # for ever
        splits[split] = _unused(split, scenes, count, taken, held_out=True)
    for noun, names in CLASSES.items():
        splits[noun] = []
        for label, name in enumerate(names):
            count = len(range(label, zeroshot, len(names)))
            scenes = (draw_scene(rng, three, **{noun: name}) for _ in iter(int, 1))
            drawn = _unused(f"{noun}-{name}", scenes, count, taken, held_out=False)
            splits[noun] += [sample._replace(label=label) for sample in drawn]
    held_out = frozenset(taken)
    scenes = (scene for scene in training_scenes(seed, three) if scene.meaning not in held_out)
    splits["train"] = [Drawn(f"train-{i:06d}", scene, False) for i, scene in enumerate(islice(scenes, train))]
    return splits


def training_scenes(seed: int, three: float) -> Iterator[Scene]:
    """Scenes without end: mostly of FAMILIES pairs of things, and mostly told from the left or the upper thing."""
    rng = Random(f"training scenes of {seed}")
    families = draw_families(rng, FAMILIES)
    while True:
        known = rng.random() < FAMILY_SHARE
        scene = draw_of_family(rng, rng.choice(families), three) if known else draw_scene(rng, three)
        yield scene.meaning if rng.random() < LEADING_SHARE else scene.meaning.otherwise


def _unused(name: str, scenes: Iterator[Scene], count: int, taken: set[Scene], held_out: bool) -> list[Drawn]:
    """The first `count` scenes whose meaning is not `taken` yet; held-out ones can have their colours swapped."""
    drawn: list[Drawn] = []
    while len(drawn) < count:
        scene = next(scenes)
        if scene.meaning not in taken and (scene.swappable or not held_out):
            taken.add(scene.meaning)
            drawn.append(Drawn(f"{name}-{len(drawn):06d}", scene, held_out))
    return drawn


def _render(drawn: Drawn, size: int, seed: int) -> dict[str, Any]:
    key, scene, held_out, label = drawn
    image, places = picture_bytes(scene, size, f"{key} of {seed}")
    return encode_sample(key, image, "png", [scene.caption], describe(scene, places, held_out), label)


def describe(scene: Scene, places: list[Place], held_out: bool) -> dict[str, Any]:
    """A sample's metadata: what is where (shares of the picture's side), and for held-out scenes the false captions."""
    fields: dict[str, Any] = {"objects": len(scene.things), "relation": scene.relation}
    if scene.both is not None:
        fields["both"] = scene.both
    for number, (thing, place) in enumerate(zip(scene.things, places, strict=True), 1):
        fields |= {f"{name}_{number}": value for name, value in thing._asdict().items()}
        fields |= {f"{name}_{number}": round(value, 4) for name, value in place._asdict().items()}
    if held_out:
        centres = [(place.x, place.y) for place in places]
        for name, swapped in (("attribute", scene.swapped_attribute), ("relation", scene.swapped_relation)):
            assert not true_of(swapped, scene.things, centres)
            fields[f"swap_{name}"] = swapped.caption
    return fields


def _refuse(train: int, val: int, test: int, zeroshot: int, size: int, three: float) -> None:
    least = {
        "train": (train, 1),
        "val": (val, 1),
        "test": (test, 1),
        "zeroshot": (zeroshot, len(COLOURS)),
    }
    for name, (value, lowest) in least.items():
        if value < lowest:
            raise ValueError(f"{name} is {value}, too few to be of use; give {lowest} or more")
    if not 16 <= size <= 1024:
        raise ValueError(
            f"size is {size}: below 16 pixels shapes look alike, above 1024 drawing crawls; give 16 to 1024"
        )
    if not 0 <= three <= 1:
        raise ValueError(f"three is {three}, but it is the share of scenes with three things; give 0 to 1")
    for name, value, meanings in (
        ("val + test", val + test, PAIRS),
        ("zeroshot", zeroshot, PAIRS // len(COLOURS)),
    ):
        if (1 - three) * value > meanings / 3:
            most = int(meanings / 3 / (1 - three))
            raise ValueError(
                f"{name} is {value}, but each held-out scene needs a meaning that no other has, and training needs the "
                f"rest; give {most} or fewer"
            )
