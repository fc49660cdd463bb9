"""Scenes as pictures: where things stand, and drawing them. A picture depends on its scene and its seed alone."""

from __future__ import annotations

import io
import math
from random import Random
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from dualenc.data.scene_words import ACROSS, Scene

SUPERSAMPLE = 4  # drawn this many times larger, then averaged: antialiased edges
MARGIN, GAP = 0.02, 0.04  # to the picture's edge; between two things (shares of the picture's side)
DRIFT = 0.02  # the most by which the gap between two things leaves the picture's middle
TILT = 0.06  # the most by which a thing leaves the line it shares with another
RADII = {"small": (0.10, 0.125), "large": (0.18, 0.21)}
RGB = {
    "red": (214, 39, 40),
    "orange": (255, 140, 10),
    "yellow": (245, 220, 30),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "purple": (135, 55, 175),
    "pink": (250, 130, 190),
    "black": (25, 25, 25),
}
SHADE = 16  # the most by which a colour's channel varies
PAPER = (205, 250)  # a background's channels
LIGHT = 80  # by how much red light grows from left to right, and blue light from top to bottom


def _regular(points: int, inner: float | None = None) -> list[tuple[float, float]]:
    """Corners of a polygon of circumradius 1 that points up; every second one at `inner` where given."""
    count = points if inner is None else 2 * points
    radii = [1.0 if inner is None or i % 2 == 0 else inner for i in range(count)]
    turns = [2 * math.pi * i / count for i in range(count)]
    return [(r * math.sin(t), -r * math.cos(t)) for r, t in zip(radii, turns, strict=True)]


_ARM = 0.33
_CROSS = [(-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)]
POLYGONS: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)],
    "triangle": _regular(3),
    "star": _regular(5, 0.42),
    "cross": _CROSS + [(-x, -y) for x, y in _CROSS],
}
HOLE = 0.55  # a ring's inner radius


class Place(NamedTuple):
    """Centre and radius as shares of the picture's side; y grows downwards."""

    x: float
    y: float
    radius: float


def lay_out(scene: Scene, rng: Random) -> list[Place]:
    """Places for the scene's things: apart by GAP at least along the relation's axis, nearly level along the other."""
    canonical = scene.meaning
    radii = [rng.uniform(*RADII[thing.size]) for thing in canonical.things]
    along = _in_a_row(radii[:2], rng)
    if canonical.both is None:
        level = _within(rng, max(radii) + TILT)
        across = [level + rng.uniform(-TILT, TILT) for _ in radii]
    else:
        row = max(radii[:2])
        first = canonical.both == ACROSS[canonical.relation][0]  # the pair is above, or left of, the third thing
        pair, third = _in_a_row([row, radii[2]], rng) if first else reversed(_in_a_row([radii[2], row], rng))
        across = [pair, pair, third]
        along.append(min(max(rng.uniform(*along), MARGIN + radii[2]), 1 - MARGIN - radii[2]))
    horizontal = canonical.relation == "left of"
    places = [
        Place(a, c, radius) if horizontal else Place(c, a, radius)
        for a, c, radius in zip(along, across, radii, strict=True)
    ]
    return places if canonical == scene else [places[1], places[0], *places[2:]]


def _in_a_row(radii: list[float], rng: Random) -> list[float]:
    """Centres of two things one after the other, on either side of the picture's middle."""
    middle = 0.5 + rng.uniform(-DRIFT, DRIFT)
    first = rng.uniform(MARGIN + radii[0], middle - GAP / 2 - radii[0])
    return [first, rng.uniform(middle + GAP / 2 + radii[1], 1 - MARGIN - radii[1])]


def _within(rng: Random, radius: float) -> float:
    return rng.uniform(MARGIN + radius, 1 - MARGIN - radius)


def draw(scene: Scene, places: list[Place], size: int, rng: Random) -> Image.Image:
    """The picture, `size` pixels square, RGB."""
    side = size * SUPERSAMPLE
    paper = tuple(rng.randint(*PAPER) for _ in range(3))
    picture = Image.new("RGB", (side, side), paper)
    pen = ImageDraw.Draw(picture)
    for thing, place in zip(scene.things, places, strict=True):
        ink = tuple(min(255, max(0, c + rng.randint(-SHADE, SHADE))) for c in RGB[thing.colour])
        x, y, r = place.x * side, place.y * side, place.radius * side
        if thing.shape in POLYGONS:
            pen.polygon([(x + r * u, y + r * v) for u, v in POLYGONS[thing.shape]], fill=ink)
            continue
        pen.ellipse((x - r, y - r, x + r, y + r), fill=ink)
        if thing.shape == "ring":
            pen.ellipse((x - HOLE * r, y - HOLE * r, x + HOLE * r, y + HOLE * r), fill=paper)
    return _lit(picture.reduce(SUPERSAMPLE))


def _lit(picture: Image.Image) -> Image.Image:
    """The picture in coloured light from one side: as in a photo, where a thing stands shows in the thing itself."""
    size = picture.width
    ramp = (np.arange(size) / size - 0.5) * LIGHT
    light = np.zeros((size, size, 3))
    light[..., 0], light[..., 2] = ramp[None, :], ramp[:, None]
    return Image.fromarray((np.asarray(picture) + light).clip(0, 255).astype(np.uint8))


def picture_bytes(scene: Scene, size: int, seed: str) -> tuple[bytes, list[Place]]:
    """The encoded picture (PNG) and where its things stand: the same for the same arguments, in any process."""
    rng = Random(seed)
    places = lay_out(scene, rng)
    buffer = io.BytesIO()
    draw(scene, places, size, rng).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue(), places
