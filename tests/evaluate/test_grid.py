"""Contact sheets: size, marks, long and foreign titles, and what is refused."""

from __future__ import annotations

import pytest
from PIL import Image

from dualenc.evaluate.page.grid import EDGE, GAP, PAPER, RIGHT, TILE, WRONG, _columns, _font, _wrap, grid


def red(width=64, height=64):
    return Image.new("RGB", (width, height), (250, 10, 10))


def test_a_sheet_holds_every_image_in_reading_order(tmp_path):
    colours = [(250, 10, 10), (10, 250, 10), (10, 10, 250)]
    grid([Image.new("RGB", (50, 50), colour) for colour in colours], ["a", "b", "c"], tmp_path / "g.png", columns=2)
    sheet = Image.open(tmp_path / "g.png")
    assert sheet.format == "PNG"
    assert sheet.width == 2 * EDGE + 2 * TILE + GAP
    middle = TILE // 2
    found = [sheet.getpixel((EDGE + x * (TILE + GAP) + middle, EDGE + middle)) for x in (0, 1)]
    row = next(y for y in range(EDGE + TILE, sheet.height) if sheet.getpixel((EDGE + middle, y)) == colours[2])
    assert found == colours[:2]
    assert row > EDGE + TILE
    assert sheet.getpixel((EDGE + TILE + GAP + middle, row + middle)) == PAPER  # the last place is empty


def test_marks_differ_by_sign_and_colour_and_none_has_neither(tmp_path):
    def counts(mark):
        path = tmp_path / f"{mark}.png"
        grid([red()], ["x"], path, marks=[mark])
        sheet = Image.open(path)
        pixels = list(sheet.get_flattened_data() if hasattr(sheet, "get_flattened_data") else sheet.getdata())
        return pixels.count(RIGHT), pixels.count(WRONG)

    assert counts(None) == (0, 0)
    right, wrong = counts(True), counts(False)
    assert right[0] > 2000
    assert right[1] == wrong[0] == 0
    assert right[0] != wrong[1]  # the tick and the cross leave different holes


@pytest.mark.parametrize(
    "title",
    [
        "",
        "x" * 500,
        "a very long caption " * 40,
        "孩子在爬楼梯",
        "ребёнок",
        "العربية",
        "👩‍🚀 \u0000 \ud800",
        "two\nlines",
        "   ",
    ],
)
def test_any_title_can_be_written(tmp_path, title):
    grid([red(), None, red(300, 20)], [title, title, title], tmp_path / "g.png", heading=title)
    assert Image.open(tmp_path / "g.png").height < 2 * EDGE + TILE + 200


def test_titles_are_wrapped_inside_the_tile_and_cut_with_a_sign():
    font = _font("DejaVuSans.ttf", 15)
    short = _wrap("a red circle left of a blue square", font, TILE, 3)
    assert " ".join(short) == "a red circle left of a blue square"
    for text in ("word " * 100, "unbroken" * 50):
        lines = _wrap(text, font, TILE, 3)
        assert len(lines) == 3
        assert lines[-1].endswith("…")
        assert all(font.getlength(line) <= TILE for line in lines)
        assert text.startswith(lines[0])


def test_an_alpha_or_grey_image_is_no_trouble(tmp_path):
    grid(
        [Image.new("RGBA", (9, 9)), Image.new("L", (9, 9)), Image.new("P", (9, 9))], ["a", "b", "c"], tmp_path / "g.png"
    )
    assert (tmp_path / "g.png").exists()


def test_rows_are_even():
    assert [_columns(count) for count in (1, 2, 5, 6, 8, 10, 11)] == [1, 2, 5, 3, 4, 5, 4]


@pytest.mark.parametrize(
    ("images", "titles", "marks"), [([], [], None), ([red()], [], None), ([red()], ["a"], [True, False])]
)
def test_lists_that_do_not_fit_are_refused(tmp_path, images, titles, marks):
    with pytest.raises(ValueError, match="a grid takes one of each"):
        grid(images, titles, tmp_path / "g.png", marks=marks)
    assert list(tmp_path.iterdir()) == []
