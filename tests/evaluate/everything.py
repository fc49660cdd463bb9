"""A made-up report with a part of every kind, and in each what strains a page: long names, 0, 1, None, every script."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from dualenc.evaluate.intervals import Interval
from dualenc.evaluate.page.figure import bars, heat, heat_size, histograms, panel
from dualenc.evaluate.sections import Example, Examples, Headline, Item, Panel, Picture, Section, Share, Table

LONG = "a_very_long_name_without_a_space_that_somebody_gave_to_a_column_of_their_metadata"
CAPTIONS = [
    "A brown dog runs through tall grass after a frisbee that is much too fast for it",
    "صبي صغير يتسلق السلالم في بيت خشبي",
    "孩子在爬楼梯",
    "ילדה קטנה מטפסת אל תוך בית משחקים מעץ",
    "👩‍🚀 ребёнок в розовом платье",
    LONG,
    "",
]
CLASSES = ["red fox", "grey wolf", "a class with a much longer name than the others", "حصان", "馬", "cat"]


def everything(folder: Path) -> tuple[dict, list[Section], list[dict], dict]:
    """What `write_report` takes: report, sections, curve, provenance. The pictures lie in `folder`."""
    pictures = _pictures(folder)
    report: dict = {"text_to_image/recall@1": 0.706, "text_to_image/recall@1/low": 0.69}
    report |= {"text_to_image/recall@1/high": 0.72, "text_to_image/recall@1/chance": 0.001, "zeroshot/acc5": None}
    report |= {f"by/{LONG}/group {i}/acc1": i / 100 for i in range(100)} | {"images": 25_000, "tiny": 1.2e-7}
    curve = [{"step": s, "train/loss": 5 / (1 + s), "val/text_to_image/recall@1": s / 60} for s in range(50)]
    provenance = {
        "command": f"dualenc eval retrieval --encoder runs/{LONG}/encoder --data 'shards with spaces/{{000..009}}.tar'",
        "encoder": f"/home/somebody/runs/{LONG}/encoder",
        "fingerprint": "0123456789abcdef" * 4,
        "data": "shards",
        "data/samples": 25_000,
        "data/sha256": "fedcba9876543210" * 4,
        "date": "2026-01-01 12:00:00 UTC",
        "versions": {"dualenc": "0.1.0", "torch": "2.13.0+cpu", "faiss": None},
    }
    return report, [_numbers(), _figures(), _galleries(pictures)], curve, provenance


def _numbers() -> Section:
    headlines = [
        Headline("Text → image R@1", Share(0.706, 0.001, Interval(0.69, 0.72)), "of captions have their image first"),
        Headline("Text → image R@5", Share(1.0, 0.005, Interval(1.0, 1.0)), "of captions"),
        Headline("Image → text R@1", Share(0.0, 0.001, Interval(0.0, 0.004)), "of images have a caption of their own"),
        Headline("B less A", Share(-0.021, None, Interval(-0.034, -0.008)), "of recall@1; p = 0.002, paired by image"),
        Headline(f"Worst group of {LONG}", Share(0.31, 0.5, Interval(0.1, 0.55)), "of images in it"),
    ]
    wide = Table(
        ["Encoder", "Parameters", "Data", "Acc@1", "Acc@5", "Mean per class", "ECE", "Median rank", "Seconds"],
        [
            [
                name,
                "151,277,313",
                "imagenet-v2",
                Share(0.632, 0.001, Interval(0.6, 0.66)),
                Share(1.0),
                Share(0.0),
                *rest,
            ]
            for name, *rest in (
                ["ViT-B-32:laion2b_s34b_b79k", "0.041", "1.0", "12.5"],
                ["ViT-B-32:openai", "0.055", "2.0", "–"],
                [f"/runs/{LONG}/encoder", "0.3", "1,200.5", "3,600.0"],
            )
        ],
        "A wide table scrolls in its card. Ties count as misses. The light band on a bar is the 95 % interval.",
    )
    plain = Table(["", "Text → image", "Image → text"], [["Recall@1", Share(0.5), Share(0.6)], ["Rank", "4", "3.5"]])
    groups = [[f"{CLASSES[i % 6]} {i}", f"{1000 - i:,}", Share(1 - i / 400), CAPTIONS[i % 7]] for i in range(400)]
    long = Table(["Class", "Images", "Right", "Mistaken for"], groups, "Every class, in order of size.")
    empty = Table(["Group", "Images"], [])
    return Section("Numbers", "What there is to say in numbers. " * 6, headlines, [plain, wide, long, empty])


def _figures() -> Section:
    rng = np.random.default_rng(0)
    shares = [Share(1 - i / 6, 1 / 6, Interval(max(0, 0.9 - i / 6), min(1, 1.1 - i / 6))) for i in range(6)]
    confusion = rng.random((6, 6)) * 0.3 + np.eye(6) * 0.7
    confusion[2, 3] = np.nan
    many = rng.random((25, 25)) ** 4 + np.eye(25)
    names = [f"class number {i}" for i in range(25)]
    scores = {"right pairs": rng.normal(0.31, 0.05, 900), "wrong pairs": rng.normal(0.12, 0.06, 900)}
    size = heat_size(25, 25)
    return Section(
        f"Figures of {LONG}",
        "Lines, bars, histograms, heat maps.",
        figures=[
            panel("By class", "bars", lambda axes: bars(axes, CLASSES, shares)),
            panel("Scores", "histograms", lambda axes: histograms(axes, scores)),
            _lines(),
            panel(
                "Taken for, %",
                "a heat map",
                lambda axes: heat(axes, 100 * confusion, CLASSES, CLASSES, text="{:.0f}".format),
                heat_size(6, 6),
            ),
            panel("A heat map of 25 classes", "a heat map", lambda axes: heat(axes, many, names, names), size),
        ],
    )


def _lines() -> Panel:
    def draw(axes) -> None:
        for i in range(4):
            axes.plot([1, 2, 4, 8, 16], [0.3 + 0.1 * i + 0.02 * k for k in range(5)], marker="o", label=f"line {i}")
        axes.legend()
        axes.set_xlabel("shots")

    return panel("Few shots", "four lines", draw)


def _galleries(pictures: list[Picture]) -> Section:
    def shown(i: int, right: bool | None, note: str) -> Item:
        return Item(CAPTIONS[i % 7], pictures[i % len(pictures)], True, right, note)

    lost = Item("a lost one", Picture("/nowhere/at/all.jpg", 0, 9), True, False, "0.101 · place\u00a01,204")
    of_text = [
        Example(
            Item(text), [shown(k, k == 3, f"0.{300 - k}") for k in range(4)] + [lost], i % 2 == 0, "found at place 4"
        )
        for i, text in enumerate(CAPTIONS[:4])
    ]
    of_image = [
        Example(shown(i, None, ""), [Item(text, right=k == i, note="0.213") for k, text in enumerate(CAPTIONS)], i == 0)
        for i in range(3)
    ]
    classed = [
        Example(
            shown(i, None, ""), [Item(name, right=k == 0, note="0.31") for k, name in enumerate(CLASSES[:3])], i < 2
        )
        for i in range(4)
    ]
    worst = [Example(shown(i, None, "s001"), [Item(CAPTIONS[i], note="0.031")], False, "no match") for i in range(6)]
    pairs = [Example(Item(CAPTIONS[0]), [shown(i, i == 0, "0.2") for i in range(2)], True, "both") for _ in range(2)]
    return Section(
        "Galleries",
        "Hits and misses.",
        examples=[
            Examples("Text → image", "Drawn at random.", of_text),
            Examples("Image → text", "Drawn at random.", of_image),
            Examples("Classes", "Drawn at random.", classed),
            Examples("The worst pairs", "By similarity.", worst),
            Examples("Two images, two captions", "", pairs),
            Examples("Nothing", "This one has no rows.", []),
        ],
    )


def _pictures(folder: Path) -> list[Picture]:
    """Photograph-like pictures of several shapes, one after the other in one file."""
    made, start = [], 0
    with open(folder / "pictures.bin", "wb") as file:
        for i, (width, height) in enumerate([(320, 240), (240, 320), (300, 300), (640, 160), (120, 400)]):
            y, x = np.mgrid[:height, :width]
            pixels = np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 50 * i)], axis=2)
            data = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(data, "JPEG")
            file.write(data.getvalue())
            made.append(Picture(str(folder / "pictures.bin"), start, len(data.getvalue())))
            start += len(data.getvalue())
    return made
