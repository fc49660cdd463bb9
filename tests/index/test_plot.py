"""The picture of an index's curve."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from dualenc.index.plot import plot_curve


def manifest(points, chosen, **record):
    curve = [{"setting": setting, "recall": recall, "ms": ms} for setting, recall, ms in points]
    measured = {
        "k": 10,
        "target": 0.95,
        "value": 0.96,
        "measured_on": 1000,
        "queries": "the store's texts",
        "rows": 1_234_567,
    }
    return {
        "recipe": {"name": "ivf_pq", "build": {"kind": "ivf"}},
        "rows": 1_234_999,
        "dim": 512,
        "search": chosen,
        "ann_recall": {**measured, "curve": curve, **record},
    }


MANY = [
    *(({"nprobe": 1, "rerank": 1}, 0.21, 0.011), ({"nprobe": 4, "rerank": 2}, 0.58, 0.031)),
    *(({"nprobe": 16, "rerank": 4}, 0.88, 0.09), ({"nprobe": 24, "rerank": 4}, 0.94, 0.13)),
    *(({"nprobe": 32, "rerank": 4}, 0.957, 0.16), ({"nprobe": 512, "rerank": 16}, 0.9993, 2.3)),
]
WHOLE = manifest(MANY, {"nprobe": 32, "rerank": 4})


def texts(path) -> str:
    """What stands in an SVG's comments: matplotlib draws letters as shapes and notes the text beside them."""
    return " ".join(re.findall(r"<!-- (.*?) -->", path.read_text(encoding="utf-8"), flags=re.DOTALL))


def test_the_picture_says_what_was_measured(tmp_path):
    plot_curve(WHOLE, tmp_path / "c.svg")
    ElementTree.parse(tmp_path / "c.svg")
    said = texts(tmp_path / "c.svg")
    for words in (
        "ivf_pq: 1,234,567 rows × 512",
        "measured on 1,000 queries: the store's texts",
        "chosen: nprobe 32, rerank 4",
        "target 0.95",
        "ANN recall@10",
        "ms per query, in a batch",
        "nprobe 512",
        "rerank 16",
    ):
        assert words in said
    assert "nprobe 24" not in said  # no room beside the chosen one
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.svg"]


def test_the_same_curve_gives_the_same_file(tmp_path):
    for suffix in ("svg", "png"):
        plot_curve(WHOLE, tmp_path / f"a.{suffix}")
        plot_curve(WHOLE, tmp_path / f"b.{suffix}")
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_a_png_is_one_and_shows_the_line_and_the_chosen_point(tmp_path):
    from PIL import Image

    plot_curve(WHOLE, tmp_path / "c.PNG")
    with Image.open(tmp_path / "c.PNG") as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape[0] > 500 < pixels.shape[1]
    for colour, least in (((0x2F, 0x6F, 0xB0), 1000), ((0xC4, 0x50, 0x1B), 500)):
        assert (np.abs(pixels - colour).sum(axis=2) < 20).sum() > least
    edge = np.concatenate([pixels[:3].ravel(), pixels[:, :3].ravel(), pixels[:, -3:].ravel(), pixels[-3:].ravel()])
    assert (edge == 255).all()  # no label runs out of the picture


@pytest.mark.parametrize(
    "one",
    [
        manifest([({"efSearch": 16}, 0.9991, 0.4)], {"efSearch": 16}),
        manifest([({}, 1.0, 0.4)], {}),
        manifest([({"nprobe": 1}, 1.0, 1e-4), ({"nprobe": 2}, 1.0, 1e-4)], {"nprobe": 1}),
        manifest(MANY, {"nprobe": 5}, target=None),
    ],
)
def test_odd_curves_are_drawn_too(one, tmp_path):
    plot_curve(one, tmp_path / "c.svg")
    said = texts(tmp_path / "c.svg")
    assert ("target" in said) == (one["ann_recall"]["target"] is not None)
    assert ("chosen" in said) == (one["search"] != {"nprobe": 5})


def test_time_is_drawn_by_ratios(tmp_path):
    """Each point ten times slower than the one before lies as far to the right of it."""
    plot_curve(manifest([({"nprobe": 10**i}, 0.5 + i / 10, 0.1 * 10**i) for i in range(4)], {}), tmp_path / "c.svg")
    line = re.search(r'<path d="M ([^"]*)"[^>]*stroke: #2f6fb0', (tmp_path / "c.svg").read_text())
    x = [float(value) for value in re.findall(r"([\d.]+) [\d.]+", line[1])]
    assert len(x) == 4
    assert np.allclose(np.diff(x), x[1] - x[0], atol=0.01)


@pytest.mark.parametrize("name", ["c.pdf", "c", "c.png.gz"])
def test_other_suffixes_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match=r"name the picture \.png or \.svg"):
        plot_curve(WHOLE, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("record", [{"curve": []}, {"curve": None}])
def test_without_a_curve_there_is_nothing_to_draw(record, tmp_path):
    with pytest.raises(ValueError, match="no measured curve to draw"):
        plot_curve(manifest([], {}, **record), tmp_path / "c.png")
    assert not list(tmp_path.iterdir())


def test_a_picture_that_fails_leaves_what_was_there(tmp_path):
    (tmp_path / "c.png").write_bytes(b"older")
    broken = manifest(MANY, {})
    broken["ann_recall"]["curve"][0]["recall"] = "none"
    with pytest.raises(Exception):  # noqa: B017 (whatever matplotlib says)
        plot_curve(broken, tmp_path / "c.png")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("c.png", b"older")]
