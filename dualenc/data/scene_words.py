"""What a scene means and how it is said: things, relations, captions, swapped captions, and whether one is true."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

SIZES = ("small", "large")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
ACROSS = {"left of": ("above", "below"), "above": ("left of", "right of")}  # how a third thing can stand to a pair
TEMPLATES_PER_CLASS = 32


class Thing(NamedTuple):
    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.shape}"


class Scene(NamedTuple):
    """things[0] stands `relation` things[1]; where there is a third, both of them stand `both` it."""

    things: tuple[Thing, ...]
    relation: str
    both: str | None = None

    @property
    def caption(self) -> str:
        first = f"{self.things[0]} {self.relation} {self.things[1]}"
        return first if self.both is None else f"{first}, both {self.both} {self.things[2]}"

    @property
    def otherwise(self) -> Scene:
        """The same scene said from the other side."""
        return Scene((self.things[1], self.things[0], *self.things[2:]), OPPOSITE[self.relation], self.both)

    @property
    def meaning(self) -> Scene:
        """One form for both ways to say it: the first thing is the left or the upper one."""
        return self if self.relation in ACROSS else self.otherwise

    @property
    def swapped_relation(self) -> Scene:
        return self._replace(relation=OPPOSITE[self.relation])

    @property
    def swapped_attribute(self) -> Scene:
        """The first two things with each other's colour."""
        first, second = self.things[:2]
        traded = (first._replace(colour=second.colour), second._replace(colour=first.colour))
        return self._replace(things=(*traded, *self.things[2:]))

    @property
    def swappable(self) -> bool:
        """Whether no swap is true: with equal shapes, trading colours could say the same as the swapped relation."""
        first, second = self.things[:2]
        return first.colour != second.colour and first.shape != second.shape


def stands(relation: str, first: tuple[float, float], second: tuple[float, float]) -> bool:
    """Whether the point `first` stands `relation` the point `second`; (x, y) with y growing downwards."""
    axis = 0 if relation in ("left of", "right of") else 1
    before = relation in ("left of", "above")
    return first[axis] < second[axis] if before else first[axis] > second[axis]


def true_of(scene: Scene, things: Sequence[Thing], centres: Sequence[tuple[float, float]]) -> bool:
    """Whether the scene's caption is true of `things` at `centres` in any reading, on the loosest view of relations."""
    if len(scene.things) != len(things):
        return False
    for order in itertools.permutations(range(len(things))):
        points = [centres[i] for i in order]
        pairs = [(scene.relation, points[0], points[1])]
        if scene.both is not None:
            pairs += [(scene.both, points[0], points[2]), (scene.both, points[1], points[2])]
        if all(things[i] == said for i, said in zip(order, scene.things, strict=True)) and all(
            stands(*pair) for pair in pairs
        ):
            return True
    return False


def draw_thing(rng: Random, colour: str | None = None, shape: str | None = None) -> Thing:
    return Thing(rng.choice(SIZES), colour or rng.choice(COLOURS), shape or rng.choice(SHAPES))


def draw_scene(rng: Random, three: float, colour: str | None = None, shape: str | None = None) -> Scene:
    """A scene of different things; with probability `three` there are three. `colour` or `shape` fixes it for all."""
    wanted = 3 if rng.random() < three else 2
    things: list[Thing] = []
    while len(things) < wanted:
        thing = draw_thing(rng, colour, shape)
        if thing not in things:
            things.append(thing)
    relation = rng.choice(tuple(ACROSS))
    both = rng.choice(ACROSS[relation]) if wanted == 3 else None
    scene = Scene(tuple(things), relation, both)
    return scene if rng.random() < 0.5 else scene.otherwise


def draw_families(rng: Random, count: int) -> list[Scene]:
    """Pairs of things that differ in colour and shape, for scenes that differ in nothing but who stands where."""
    drawn = (draw_scene(rng, 0.0) for _ in iter(int, 1))  # for ever
    return list(itertools.islice((scene for scene in drawn if scene.swappable), count))


def draw_of_family(rng: Random, family: Scene, three: float) -> Scene:
    """A scene of a family's pair, or of the same pair with its colours exchanged, in any relation."""
    scene = family.swapped_attribute if rng.random() < 0.5 else family
    scene = scene._replace(relation=rng.choice(tuple(OPPOSITE)))
    third = draw_thing(rng)
    if rng.random() < three and third not in scene.things:
        scene = scene._replace(things=(*scene.things, third), both=rng.choice(ACROSS[scene.meaning.relation]))
    return scene


def templates(noun: str, count: int = TEMPLATES_PER_CLASS) -> list[str]:
    """Caption contexts with `{c}` in the place of every thing's colour or shape (`noun`): a zero-shot ensemble."""
    rng = Random(f"templates of {noun}")
    unique: dict[str, None] = {}
    while len(unique) < count:
        scene = draw_scene(rng, 0.0, **{noun: "{c}"})
        unique[scene.caption] = None
    return list(unique)
