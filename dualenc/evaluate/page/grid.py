"""Contact sheets: hits as one PNG, with titles and marks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from dualenc.files import whole_file

TILE, GAP, EDGE = 240, 20, 28  # pixels: a tile's side, between tiles, around the sheet
LINES = 3  # of a title, the rest is cut
PAPER, INK, FAINT = (250, 250, 249), (28, 30, 33), (235, 235, 232)
RIGHT, WRONG = (20, 122, 75), (192, 58, 43)


def grid(
    images: Sequence[Image.Image | None],
    titles: Sequence[str],
    path: str | Path,
    marks: Sequence[bool | None] | None = None,
    heading: str = "",
    columns: int | None = None,
) -> None:
    """Write a PNG contact sheet: each image with its title below, in reading order, `heading` above.

    images: PIL, or None where one cannot be read. titles: cut after three lines. marks: True adds a tick, False a
    cross, None nothing. columns: 5 at most where not given. The file appears whole or not at all.
    ValueError: no image, or lists of different lengths.
    """
    marks = list(marks) if marks is not None else [None] * len(images)
    if not images or not len(images) == len(titles) == len(marks):
        raise ValueError(
            f"{len(images)} images, {len(titles)} titles, {len(marks)} marks: a grid takes one of each per image"
        )
    columns = columns or _columns(len(images))
    font, bold = _font("DejaVuSans.ttf", 15), _font("DejaVuSans-Bold.ttf", 20)
    wrapped = [_wrap(title, font, TILE, LINES) for title in titles]
    width = 2 * EDGE + columns * TILE + (columns - 1) * GAP
    top = EDGE
    head = _wrap(heading, bold, width - 2 * EDGE, 2) if heading else []
    starts = list(range(0, len(images), columns))
    heights = [TILE + 12 + 20 * max(len(lines) for lines in wrapped[s : s + columns]) + GAP for s in starts]
    body = top + (28 * len(head) + 14 if head else 0)
    sheet = Image.new("RGB", (width, body + sum(heights) - GAP + EDGE), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.multiline_text((EDGE, top), "\n".join(head), INK, bold, spacing=6)
    for start, height in zip(starts, heights, strict=True):
        for i in range(start, min(start + columns, len(images))):
            x = EDGE + (i - start) * (TILE + GAP)
            _tile(sheet, images[i], x, body, marks[i])
            for number, line in enumerate(wrapped[i]):
                draw.text((x, body + TILE + 10 + 20 * number), line, INK, font)
        body += height
    with whole_file(path) as partial:
        sheet.save(partial, "PNG")


def _columns(count: int) -> int:
    """As even as it gets with 5 at most: 6 are 3 + 3, 8 are 4 + 4, 10 are 5 + 5."""
    rows = -(-count // 5)
    return -(-count // rows)


def _tile(sheet: Image.Image, image: Image.Image | None, x: int, y: int, mark: bool | None) -> None:
    draw = ImageDraw.Draw(sheet)
    box = (x, y, x + TILE - 1, y + TILE - 1)
    draw.rounded_rectangle(box, 10, FAINT)
    if image is None:
        draw.text((x + TILE / 2, y + TILE / 2), "not readable", INK, _font("DejaVuSans.ttf", 15), anchor="mm")
    else:
        fitted = ImageOps.contain(image.convert("RGB"), (TILE, TILE), Image.Resampling.LANCZOS)
        corners = Image.new("L", fitted.size, 0)
        ImageDraw.Draw(corners).rounded_rectangle((0, 0, fitted.width - 1, fitted.height - 1), 10, 255)
        sheet.paste(fitted, (x + (TILE - fitted.width) // 2, y + (TILE - fitted.height) // 2), corners)
    if mark is not None:
        colour = RIGHT if mark else WRONG
        draw.rounded_rectangle(box, 10, outline=colour, width=4)
        draw.ellipse((x + TILE - 35, y + 5, x + TILE - 5, y + 35), colour, PAPER, 2)
        draw.text((x + TILE - 20, y + 20), "✓" if mark else "✗", PAPER, _font("DejaVuSans-Bold.ttf", 18), anchor="mm")


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: float, most: int) -> list[str]:
    """`text` in at most `most` lines of `width` pixels, broken at spaces, inside a word where there are none."""
    lines: list[str] = []
    for paragraph in text.splitlines() or [""]:
        rest = " ".join(paragraph.split())
        while rest and len(lines) <= most:
            line = _fitting(rest, font, width)
            lines.append(line.rstrip())
            rest = rest[len(line) :].lstrip()
    if len(lines) <= most:
        return lines
    last = lines[most - 1]
    while last and font.getlength(last + "…") > width:
        last = last[:-1]
    return [*lines[: most - 1], last.rstrip() + "…"]


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The longest beginning of `text` that fits, up to a space where one lies in it; one character at least."""
    end = len(text)
    for size in range(1, len(text) + 1):  # titles are short, and stop within a few dozen characters
        if font.getlength(text[:size]) > width:
            end = max(1, size - 1)
            break
    if end == len(text):
        return text
    space = text.rfind(" ", 0, end + 1)
    return text[: space + 1] if space > 0 else text[:end]


@lru_cache(maxsize=8)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """DejaVu from matplotlib's data: there on every machine, and it has Latin, Greek, Cyrillic and Arabic letters."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)
